"""Models written as GGUF: read back by dejavu, and their headers and blocks by the gguf package."""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.errors import CacheError, InputError, NumericsError, UnsupportedModelError
from dejavu.models import gguf_writer
from dejavu.models.gguf_writer import GGUF_CODECS, write_gguf
from dejavu.models.loading import open_model
from dejavu.models.rope import frequencies
from tiny_gated import GATED, configured, random_weights
from tiny_models import CASES, relative_error
from tiny_relu import MemoryWeights, half_dead

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Folder = Callable[[str], Path]

SAME_OPTIONS = {"llama-long", "llama-blocks", "llama-tail", "llama-bf16", "llama-f16", "llama-sharded"}
WITHOUT_GGUF = {name for name in CASES if name.startswith(("opt", "falcon"))}
UNSAID = {
    "gemma2-plain",
    "rope-dynamic",
    "qwen2-window",
    "gemma3-scaled",
    "neox-dynamic",
    "neox-serial",
    "rope-yarn-mscale",
}


@pytest.mark.parametrize("name", sorted(CASES.keys() - SAME_OPTIONS - WITHOUT_GGUF - UNSAID))
def test_a_file_is_read_back_as_the_same_model(name: str, tiny_folder: Folder, tmp_path: Path) -> None:
    model = open_model(tiny_folder(name))
    # GGUF takes it for granted that Gemma scales attention by the width of its heads.
    config = dataclasses.replace(model.config, attn_scale=0.0)
    write_gguf(tmp_path / "m.gguf", config, model.weights.read, {}, codec="f32")
    copy = open_model(tmp_path / "m.gguf")
    assert sorted(copy.weights.names()) == sorted(model.weights.names())
    for tensor in model.weights.names():
        np.testing.assert_array_equal(copy.weights.read(tensor), model.weights.read(tensor))
    for field in ("activation", "biases", "window_layers", "qk_norm", "tied_head", "parallel_residual"):
        assert getattr(copy.config, field) == getattr(model.config, field)
    if model.config.position == "rope":
        np.testing.assert_allclose(frequencies(copy.config), frequencies(model.config), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(UNSAID | {"opt"}))
def test_what_gguf_cannot_say_is_refused(name: str, tiny_folder: Folder, tmp_path: Path) -> None:
    model = open_model(tiny_folder(name))
    with pytest.raises(UnsupportedModelError, match=r"cannot say|no form in GGUF"):
        write_gguf(tmp_path / "m.gguf", model.config, model.weights.read, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["relu", "relu2", "fatrelu", "shifted_relu", "drelu", "gelu_tanh", "silu"])
def test_the_activation_is_recorded(kind: str, tmp_path: Path) -> None:
    config = configured(kind)
    write_gguf(tmp_path / "m.gguf", config, random_weights(config).read, {})
    copy = open_model(tmp_path / "m.gguf")
    assert copy.config.activation == kind
    assert copy.config.activation_threshold == pytest.approx(config.activation_threshold)
    # llama.cpp takes SiLU for granted: it must not know the name of another.
    assert copy.metadata["general.architecture"] == ("llama" if kind == "silu" else "dejavu-llama")


@pytest.mark.parametrize("codec", GGUF_CODECS)
def test_the_gguf_package_reads_the_same_numbers(codec: Any, tmp_path: Path) -> None:
    import gguf

    weights = random_weights(GATED)
    write_gguf(tmp_path / "m.gguf", GATED, weights.read, {"general.name": "tiny"}, codec=codec)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    copy = open_model(tmp_path / "m.gguf")
    assert reader.get_field("general.name").contents() == "tiny"
    sources = {"token_embd.weight": "embed.weight", "blk.1.ffn_up.weight": "layers.1.up.weight"}
    sources["blk.0.ffn_up.bias"] = "layers.0.up.bias"
    for tensor in reader.tensors:
        if tensor.name in sources:
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(theirs, copy.weights.read(sources[tensor.name]))
    limit = {"f32": 0, "f16": 1e-3, "bf16": 8e-3, "q8_0": 1e-2, "q4_0": 0.15, "q4_1": 0.15}[codec]
    for name in weights.names():
        assert relative_error(copy.weights.read(name), weights.read(name)) <= limit
    kinds = {copy.weights.source_type(name) for name in weights.names()}
    assert codec.upper() in kinds
    assert copy.weights.source_type("layers.0.up.bias") == "F32"
    assert copy.weights.source_type("layers.0.down.weight") == (codec if codec[0] != "q" else "f16").upper()
    if codec.startswith("q4"):
        assert copy.weights.source_type("embed.weight") == "Q8_0"


def test_large_tensors_are_quantised_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(GATED)
    write_gguf(tmp_path / "whole.gguf", GATED, weights.read, {})
    monkeypatch.setattr(gguf_writer, "_PIECE", 200)
    write_gguf(tmp_path / "pieces.gguf", GATED, weights.read, {})
    assert (tmp_path / "pieces.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_file_is_replaced_by_force_only(tmp_path: Path) -> None:
    target, read = tmp_path / "m.gguf", random_weights(GATED).read
    write_gguf(target, GATED, read, {})
    before = target.read_bytes()
    with pytest.raises(InputError, match="exists"):
        write_gguf(target, GATED, read, {}, codec="f16")
    assert target.read_bytes() == before
    write_gguf(target, GATED, read, {}, codec="f16", force=True)
    assert target.read_bytes() != before
    with pytest.raises(InputError, match="exists"):
        write_gguf(tmp_path, GATED, read, {}, force=True)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf_writer, "_encode", full)
    with pytest.raises(CacheError, match="No space left") as info:
        write_gguf(tmp_path / "m.gguf", GATED, random_weights(GATED).read, {})
    assert "free some space" in str(info.value.fix)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("codec", "value"), [("q8_0", np.nan), ("f32", np.inf), ("f16", 1e6)])
def test_values_that_cannot_be_stored_are_refused(codec: Any, value: float, tmp_path: Path) -> None:
    weights: MemoryWeights = random_weights(GATED)
    weights.tensors["layers.1.up.weight"][2, 3] = value
    with pytest.raises(NumericsError):
        write_gguf(tmp_path / "m.gguf", GATED, weights.read, {}, codec=codec)
    assert not list(tmp_path.iterdir())


def test_minicpm_keeps_its_scale(tmp_path: Path) -> None:
    for kind in ("silu", "fatrelu"):
        config = dataclasses.replace(configured(kind), family="minicpm", embed_scale=3.0)
        weights = half_dead(config)
        write_gguf(tmp_path / f"{kind}.gguf", config, weights.read, {}, codec="f32")
        copy = open_model(tmp_path / f"{kind}.gguf")
        assert (copy.config.family, copy.config.embed_scale, copy.config.activation) == ("minicpm", 3.0, kind)
        for name in weights.names():
            np.testing.assert_array_equal(copy.weights.read(name), weights.read(name))
