"""Scores count how long a neuron's down row is, in both executors alike."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.engine import NativeExecutor
from dejavu.engine.packed import pack_in_memory
from dejavu.engine.synthetic import synthetic
from dejavu.models import down_norms as module
from dejavu.models.down_norms import column_norms, down_norms
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, Oracle, Sketch
from dejavu.reference import ReferenceExecutor
from dejavu.refinement import REFINED, refine
from test_sparse_parity import by_decoding, check, plan_of
from tiny_models import CASES, prompt, relative_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Folder = Callable[[str], Path]

HUGE, NOTHING = 7, 11
"""Neurons whose down rows are a million times as long as they were, and zero."""


class Scaled:
    """Weights with the down row of each neuron times `factors` [f]."""

    def __init__(self, weights: Any, factors: Array) -> None:
        self._weights, self._factors = weights, factors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weights, name)

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        found = self._weights.read(name, start, stop)
        return found * self._factors if name.endswith("down.weight") else found

    def read_columns(self, name: str, start: int, stop: int) -> Array:
        found = self._weights.read_columns(name, start, stop)
        return found * self._factors[start:stop] if name.endswith("down.weight") else found


def pair(
    folder: Path, codec: Any, factors: Callable[[int], Array], *, nested: bool = False
) -> tuple[NativeExecutor, ReferenceExecutor]:
    model = open_model(folder)
    weights: Any = Scaled(model.weights, factors(model.config.d_ff))
    packed = pack_in_memory(model.config, weights, codec, 1, nested=nested)
    native = NativeExecutor(packed, kv_dtype="f32", threads=2)
    return native, ReferenceExecutor(model.config, weights, codec=codec)


def uneven(f: int) -> Array:
    return (10 ** np.random.default_rng(4).uniform(-2, 1, f)).astype(np.float32)


def poisoned(f: int) -> Array:
    factors = np.ones(f, np.float32)
    factors[HUGE], factors[NOTHING] = 1e6, 0
    return factors


def test_norms_are_those_of_the_down_rows(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(tiny_folder("llama"))
    for layer in range(model.config.n_layers):
        down = model.weights.read(f"layers.{layer}.down.weight")
        np.testing.assert_allclose(down_norms(model.weights, layer), np.linalg.norm(down, axis=0), rtol=1e-6)
    wide = np.random.default_rng(0).standard_normal((3, 700)).astype(np.float32)

    class Wide:
        def shape(self, name: str) -> tuple[int, ...]:
            return wide.shape

        def read_columns(self, name: str, start: int, stop: int) -> Array:
            assert start % 256 == 0
            return wide[:, start:stop]

    monkeypatch.setattr(module, "_PIECE", 1)
    np.testing.assert_array_equal(down_norms(Wide(), 0), column_norms(wide))  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", ["f32", "bf16", "int8", "int4"])
def test_executors_have_the_same_norms(codec: Any, tiny_folder: Folder) -> None:
    """To the last bit, whatever the codec, as thresholds of a plan depend on them."""
    plain = pair(tiny_folder("llama"), "f32", uneven)[1].down_norms
    for nested in (False, True) if codec in ("int8", "int4") else (False,):
        native, reference = pair(tiny_folder("llama"), codec, uneven, nested=nested)
        np.testing.assert_array_equal(native.down_norms, plain)
        np.testing.assert_array_equal(reference.down_norms, plain)


def test_refined_copies_are_not_counted(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dejavu.refinement._SMALLEST", 1)
    model = open_model(tiny_folder("llama"))
    config, weights = refine(model.config, model.weights, "int8")
    assert config.d_ff == model.config.d_ff + REFINED
    native = NativeExecutor(pack_in_memory(config, weights, "int8", 1, nested=True), threads=1)
    expected = np.stack([down_norms(model.weights, i) for i in range(config.n_layers)])
    np.testing.assert_array_equal(native.down_norms, expected)
    np.testing.assert_array_equal(ReferenceExecutor(config, weights, codec="int8").down_norms, expected)


@pytest.mark.parametrize("kind", ["oracle", "sketch-2", "sketch-3", "sketch-4", "sketch-ahead-1"])
@pytest.mark.parametrize("name", ["llama-head-dim", "llama-biases", "opt-350m", "bloom"])
def test_parity_with_rows_of_different_lengths(name: str, kind: str, tiny_folder: Folder) -> None:
    codec = "f32" if kind == "oracle" else "int8"
    native, reference = pair(tiny_folder(name), codec, uneven, nested=kind != "oracle")
    check(native, reference, plan_of(native, kind), name, codec)


@pytest.mark.parametrize("selector", [Oracle(density=0.3), Sketch(bits=4, density=0.3)])
@pytest.mark.parametrize("name", ["llama-head-dim", "opt-350m", "bloom"])
def test_a_long_row_outweighs_a_large_activation(name: str, selector: Any, tiny_folder: Folder) -> None:
    """A neuron with a huge row is picked by nearly all tokens, one with a row of zeros by none."""
    executors = pair(tiny_folder(name), "int8", poisoned, nested=True)
    tokens, chosen = prompt(CASES[name]), []
    for executor in executors:
        model, layers = executors[1].fingerprint, executor.config.n_layers
        executor.set_plan(AccessPlan.uniform(model, layers, neurons=selector))
        trace = executor.trace(tokens, want=("hidden", "chosen"))
        assert not trace.chosen[:, :, NOTHING].any()
        active = trace.hidden[:, :, HUGE] != 0
        assert active.any()
        assert trace.chosen[:, :, HUGE][active].mean() > 0.95  # a sketch may take a small h for none
        chosen.append(trace.chosen[0])
    assert np.mean(chosen[0] != chosen[1]) < 0.01


def test_decoding_picks_by_length(tiny_folder: Folder) -> None:
    """One neuron per token: only the one with the huge row can make a difference."""
    native, _ = pair(tiny_folder("llama-head-dim"), "int8", poisoned, nested=True)
    tokens, config = prompt(CASES["llama-head-dim"]), native.config
    found = {}
    for kind, selector in {
        "oracle": Oracle(density=1e-6),
        "sketch": Sketch(bits=4, density=1e-6),
        "threshold": Oracle(threshold=100.0),
    }.items():
        native.set_plan(AccessPlan.uniform(native.packed.fingerprint, config.n_layers, neurons=selector))
        found[kind] = by_decoding(native, tokens)
        assert native.last_stats["neurons"] == pytest.approx([1 / config.d_ff] * config.n_layers, abs=1e-3)
    for kind in ("sketch", "threshold"):
        assert relative_error(found[kind], found["oracle"]) < 1e-3


def test_made_up_models_have_norms(tiny_folder: Folder) -> None:
    config = dataclasses.replace(open_model(tiny_folder("llama")).config, n_layers=2)
    assert (synthetic(config, "int8", nested=True, threads=1).down_norms == 1).all()
