"""Neurons that matter get a second helping of their down column; everything else stays what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavu.codecs import roundtrip
from dejavu.engine import NativeExecutor
from dejavu.engine.packed import pack_in_memory
from dejavu.models.config import ModelConfig
from dejavu.models.tensors import tensor_shapes
from dejavu.reference import ReferenceExecutor
from dejavu.refinement import REFINED, refine
from test_native_parity import by_decoding
from tiny_models import relative_error
from tolerances import TOLERANCES, prefill_tolerance

if TYPE_CHECKING:
    from collections.abc import Collection

GIANT = 777


class Made:
    """Random weights; neuron `GIANT` of every layer has gate and up rows that agree and are large."""

    fingerprint = "made"

    def __init__(self, config: ModelConfig) -> None:
        random = np.random.default_rng(0)
        self.values = {}
        for name, shape in tensor_shapes(config).items():
            scale = 1.0 if "norm" in name else 0.5 * shape[-1] ** -0.5
            self.values[name] = (random.standard_normal(shape) * scale).astype(np.float32)
            if name.endswith(("gate.weight", "up.weight")):
                self.values[name][GIANT] = np.float32(0.7)
            if name.endswith("down.weight"):
                self.values[name][::5, GIANT] *= 20

    def names(self) -> Collection[str]:
        return self.values

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def source_type(self, name: str) -> str:
        return "F32"

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.values[name][start:stop].copy()

    def read_columns(self, name: str, start: int, stop: int) -> np.ndarray:
        return self.values[name][:, start:stop].copy()

    def release(self) -> None: ...

    def close(self) -> None: ...


def model(gated: bool = True, layers: int = 2) -> tuple[ModelConfig, Made]:
    config = ModelConfig(
        "llama",
        60,
        64,
        layers,
        4,
        2,
        16,
        1100,
        64,
        gated=gated,
        biases=("gate", "up", "down") if gated else ("up",),
    )
    return config, Made(config)


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("gated", [True, False])
def test_columns_that_were_added_hold_what_rounding_left(codec: str, gated: bool) -> None:
    config, weights = model(gated)
    wide, refined = refine(config, weights, codec)
    assert (wide.d_ff, wide.refined) == (config.d_ff + REFINED, REFINED)
    assert wide.base_neurons == config.base_neurons == config.d_ff
    assert ModelConfig.from_dict(wide.to_dict()) == wide
    for name in ("layers.0.up.weight", "layers.1.down.weight", "layers.0.up.bias"):
        whole = refined.read(name)
        assert whole.shape == refined.shape(name)
        if name.endswith("down.weight"):
            pieces = [
                refined.read_columns(name, i, min(i + 256, wide.d_ff)) for i in range(0, wide.d_ff, 256)
            ]
            np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
            np.testing.assert_array_equal(whole[:, : config.d_ff], weights.read(name))
        else:
            pieces = [refined.read(name, i, min(i + 100, wide.d_ff)) for i in range(0, wide.d_ff, 100)]
            np.testing.assert_array_equal(np.concatenate(pieces), whole)
            np.testing.assert_array_equal(whole[: config.d_ff], weights.read(name))
    up = refined.read("layers.0.up.weight", config.d_ff)
    original = weights.read("layers.0.up.weight")
    chosen = [int(np.flatnonzero((original == row).all(axis=1))[0]) for row in up]
    assert GIANT in chosen
    down = weights.read("layers.0.down.weight").T[chosen]
    left = refined.read_columns("layers.0.down.weight", 1024, wide.d_ff)[:, config.d_ff - 1024 :].T
    np.testing.assert_array_equal(left, down - roundtrip(codec, down))


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_the_giant_neuron_is_stored_far_better(codec: str) -> None:
    config, weights = model()
    _, refined = refine(config, weights, codec)
    column = weights.read("layers.0.down.weight").T[[GIANT]]
    up = refined.read("layers.0.up.weight", config.d_ff)
    copy = int(np.flatnonzero((up == weights.read("layers.0.up.weight")[GIANT]).all(axis=1))[0])
    left = refined.read("layers.0.down.weight").T[[config.d_ff + copy]]
    once = roundtrip(codec, column)
    twice = once + roundtrip(codec, left)
    assert relative_error(twice, column) < relative_error(once, column) / 10


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("layers", [2, 8])  # of eight layers, int4 keeps the first and the last MLP in int8
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_both_executors_compute_the_same_with_it(codec: str, layers: int, nested: bool) -> None:
    config, weights = model(layers=layers)
    tokens = np.arange(1, 30, dtype=np.int32)
    wide, refined = refine(config, weights, codec)
    reference = by_decoding(ReferenceExecutor(wide, refined, codec=codec), tokens)
    packed = pack_in_memory(wide, refined, codec, 2, leading=4 if nested else 0)
    executor = NativeExecutor(packed, kv_dtype="f32", threads=2)
    assert relative_error(by_decoding(executor, tokens), reference) <= TOLERANCES[f"native_{codec}"]
    found = executor.prefill(tokens, executor.new_cache(), all_logits=True)
    assert relative_error(found, reference) <= prefill_tolerance(codec, executor.isa)


def test_other_codecs_and_narrow_models_are_left_alone() -> None:
    config, weights = model()
    assert refine(config, weights, "bf16") == (config, weights)
    narrow = ModelConfig("llama", 60, 64, 2, 4, 2, 16, 1000, 64)
    assert refine(narrow, weights, "int8") == (narrow, weights)
