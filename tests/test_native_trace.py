"""What the native engine hands out of a pass equals what the reference computes there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavu.codecs import CODECS
from dejavu.engine import NativeExecutor
from dejavu.engine.packed import pack_in_memory
from dejavu.executor import TRACE_FIELDS
from dejavu.models.loading import open_model
from dejavu.reference import ReferenceExecutor
from tiny_models import CASES, prompt, relative_error
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Folder = Callable[[str], Path]


def pair(folder: Path, codec: str) -> tuple[NativeExecutor, ReferenceExecutor]:
    model = open_model(folder)
    packed = pack_in_memory(model.config, model.weights, codec, 1)
    native = NativeExecutor(packed, kv_dtype="f32", threads=2)
    return native, ReferenceExecutor(model.config, model.weights, codec=codec)


@pytest.mark.parametrize(
    "name", ["llama-biases", "qwen3", "gemma2", "opt", "opt-350m", "bloom", "neox", "llama-relu"]
)
def test_trace_equals_the_reference(name: str, tiny_folder: Folder) -> None:
    native, reference = pair(tiny_folder(name), "f32")
    tokens = prompt(CASES[name])
    found, expected = native.trace(tokens), reference.trace(tokens)
    for field in TRACE_FIELDS:
        assert relative_error(getattr(found, field), getattr(expected, field)) <= TOLERANCES["native_f32"], (
            field
        )


@pytest.mark.parametrize("codec", CODECS)
def test_trace_of_every_codec(codec: str, tiny_folder: Folder) -> None:
    name = "llama-head-dim"
    native, reference = pair(tiny_folder(name), codec)
    tokens = prompt(CASES[name])
    found, expected = native.trace(tokens), reference.trace(tokens)
    for field in TRACE_FIELDS:
        error = relative_error(getattr(found, field), getattr(expected, field))
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
