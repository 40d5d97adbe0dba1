"""What the native engine hands out of a pass equals what the reference computes there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.codecs import CODECS
from dejavu.engine import NativeExecutor
from dejavu.engine.packed import pack_in_memory
from dejavu.executor import TRACE_FIELDS
from dejavu.models.loading import open_model
from dejavu.reference import ReferenceExecutor
from dejavu.reference.ops import activate
from tiny_models import CASES, prompt, relative_error
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Folder = Callable[[str], Path]


class Recorder(ReferenceExecutor):
    """The reference, noting what passes through its blocks."""

    def record(self, tokens: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
        self.seen: dict[str, list[NDArray[np.float32]]] = {name: [] for name in TRACE_FIELDS}
        logits = self.prefill(tokens, self.new_cache(), all_logits=True)
        return {name: np.stack(values) for name, values in self.seen.items() if values} | {"logits": logits}

    def _layer(self, i: int, x: NDArray[np.float32], *rest: Any) -> NDArray[np.float32]:
        self.seen["attn_input"].append(x)
        return super()._layer(i, x, *rest)

    def _norm(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.config.pre_norm and name.endswith("mlp_norm"):
            self.seen["mlp_input"].append(x)
        return super()._norm(name, x)

    def _mlp(self, i: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.config.pre_norm:
            self.seen["mlp_input"].append(x)
        return super()._mlp(i, x)

    def _linear(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        out = super()._linear(name, x)
        if name.endswith(".o"):
            heads = x.reshape(len(x), self.config.n_heads, -1)
            self.seen["head_norm"].append(np.linalg.norm(heads, axis=-1))
        elif name.endswith(".gate"):
            self.seen["gate"].append(activate(out, self.config.activation))
        elif name.endswith(".down"):
            self.seen["hidden"].append(x)
            if not self.config.gated:
                self.seen["gate"].append(x)
        return out


def pair(folder: Path, codec: str) -> tuple[NativeExecutor, Recorder]:
    model = open_model(folder)
    packed = pack_in_memory(model.config, model.weights, codec, 1)
    native = NativeExecutor(packed, kv_dtype="f32", threads=2)
    return native, Recorder(model.config, model.weights, codec=codec)


@pytest.mark.parametrize(
    "name", ["llama-biases", "qwen3", "gemma2", "opt", "opt-350m", "bloom", "neox", "llama-relu"]
)
def test_trace_equals_the_reference(name: str, tiny_folder: Folder) -> None:
    native, reference = pair(tiny_folder(name), "f32")
    tokens = prompt(CASES[name])
    found, expected = native.trace(tokens), reference.record(tokens)
    for field in TRACE_FIELDS:
        assert relative_error(getattr(found, field), expected[field]) <= TOLERANCES["native_f32"], field


@pytest.mark.parametrize("codec", CODECS)
def test_trace_of_every_codec(codec: str, tiny_folder: Folder) -> None:
    name = "llama-head-dim"
    native, reference = pair(tiny_folder(name), codec)
    tokens = prompt(CASES[name])
    found, expected = native.trace(tokens), reference.record(tokens)
    for field in TRACE_FIELDS:
        error = relative_error(getattr(found, field), expected[field])
        assert error <= TOLERANCES[f"native_{codec}_prefill"], field


def test_only_what_is_wanted(tiny_folder: Folder) -> None:
    native, _ = pair(tiny_folder("llama"), "f32")
    tokens = prompt(CASES["llama"])
    everything = native.trace(tokens)
    for field in TRACE_FIELDS:
        found = native.trace(tokens, want=[field])
        np.testing.assert_array_equal(getattr(found, field), getattr(everything, field))
        assert [name for name in TRACE_FIELDS if getattr(found, name).size] == [field]
    one = native.trace(tokens[:1])
    assert one.hidden.shape == (2, 1, 84)


def test_arrays_that_do_not_fit_are_refused(tiny_folder: Folder) -> None:
    native, _ = pair(tiny_folder("llama"), "f32")
    tokens, widths = np.zeros(3, np.int32), {"attn_input": 60, "mlp_input": 60, "gate": 84, "hidden": 84}
    fitting = {name: np.empty((2, 3, width), np.float32) for name, width in widths.items()}
    fitting["head_norm"] = np.empty((2, 0, 6), np.float32)
    logits = np.empty((3, 97), np.float32)
    native._engine.trace(tokens, native.new_cache(), fitting, logits)
    for arrays in (
        {"hidden": np.empty((2, 3, 83), np.float32)},
        {"hidden": np.empty((2, 4, 84), np.float32)},
        {"hidden": np.empty((2, 3, 84), np.float64)},
        {"hidden": np.empty((2, 3, 168), np.float32)[:, :, ::2]},
        {"head_norm": None},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(arrays))} is not float32"):
            native._engine.trace(tokens, native.new_cache(), fitting | arrays, logits)
    with pytest.raises(ValueError, match="is not float32"):
        native._engine.trace(tokens, native.new_cache(), {}, logits)
    with pytest.raises(ValueError, match="logits is not"):
        native._engine.trace(tokens, native.new_cache(), fitting, logits[:2])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        native.trace(np.array([97], np.int32))
