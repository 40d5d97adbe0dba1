"""Nested packed models: the same weights as the dense ones, with leading bits apart; files that are never trusted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavu import _core
from dejavu.engine import NativeExecutor
from dejavu.engine.layout import Leading, Rest, offsets, sections
from dejavu.engine.native import packed_path
from dejavu.engine.packed import pack_in_memory, read_packed, write_packed
from dejavu.errors import InputError
from dejavu.models.loading import open_model
from tiny_models import CASES, prompt
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dejavu.engine.packed import Packed

    Folder = Callable[[str], Path]

FAMILIES = ["llama-head-dim", "opt-350m", "llama-sharded"]
CUTS = [("int8", 3), ("int8", 4), ("int4", 4)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))


def section(packed: Packed, name: str) -> np.ndarray:
    offset, size = packed.places[name]
    return packed.buffer[offset : offset + size]


@pytest.mark.parametrize(("codec", "leading"), CUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_sections_hold_the_weights_of_the_dense_model(
    codec: str, leading: int, family: str, tiny_folder: Folder
) -> None:
    model = open_model(tiny_folder(family))
    config = model.config
    dense = pack_in_memory(config, model.weights, codec, 2)
    nested = pack_in_memory(config, model.weights, codec, 2, leading=leading)
    dots = 2 if config.gated else 1
    for layer in range(config.n_layers):
        prefix = f"layers.{layer}."
        whole = section(dense, f"{prefix}mlp")
        lead, rest = section(nested, f"{prefix}lead"), section(nested, f"{prefix}mlp")
        expected = [np.empty_like(lead), np.empty_like(rest)]
        _core.split_nested(codec, whole, config.d_model, dots, leading, *expected)
        np.testing.assert_array_equal(lead, expected[0])
        np.testing.assert_array_equal(rest, expected[1])
        np.testing.assert_array_equal(section(nested, f"{prefix}heads"), section(dense, f"{prefix}heads"))
    name = "embed.weight" if config.tied_head else "head.weight"
    np.testing.assert_array_equal(section(nested, name), section(dense, name))


@pytest.mark.parametrize(("codec", "leading"), CUTS)
def test_the_file_holds_what_memory_does(codec: str, leading: int, tiny_folder: Folder) -> None:
    folder = tiny_folder("llama-head-dim")
    model = open_model(folder)
    path = packed_path(folder, codec, leading=leading)
    assert path.name.startswith(f"{codec}-leading{leading}-")
    write_packed(path, model.config, model.weights, codec, 1, leading=leading)
    found, memory = read_packed(path), pack_in_memory(model.config, model.weights, codec, 1, leading=leading)
    assert found is not None
    assert found.leading == leading
    assert found.places.keys() == memory.places.keys()
    for name in found.places:
        np.testing.assert_array_equal(section(found, name), section(memory, name))


def test_dense_and_nested_files_live_side_by_side(tiny_folder: Folder) -> None:
    folder = tiny_folder("llama-head-dim")
    model = open_model(folder)
    paths = [packed_path(folder, "int8", leading=leading) for leading in (0, 3, 4, 5)]
    old = [path.with_stem(path.stem[:-12] + "0" * 12) for path in paths]
    for path, outdated, leading in zip(paths, old, (0, 3, 4, 5), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        outdated.write_bytes(b"")
        write_packed(path, model.config, model.weights, "int8", 1, leading=leading)
        assert not outdated.exists()
    assert sorted(path.parent.iterdir()) == sorted(paths)
    assert [read.leading for read in map(read_packed, paths) if read] == [0, 3, 4, 5]


@pytest.mark.parametrize("name", ["layers.0.lead", "layers.1.mlp"])
def test_sections_of_other_sizes_are_not_read(name: str, tiny_folder: Folder) -> None:
    folder = tiny_folder("llama-head-dim")
    model = open_model(folder)
    path = packed_path(folder, "int8", leading=4)
    write_packed(path, model.config, model.weights, "int8", 1, leading=4)
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[8:16], "little")
    header = json.loads(data[16 : 16 + length])
    for change in ({name: [header["sections"][name][0], 64]}, 0, 3, 5, 2):
        altered = dict(header)
        if isinstance(change, int):
            altered["leading"] = (
                change  # sections of a dense model, or of one that is cut elsewhere, are others
            )
        else:
            altered["sections"] = header["sections"] | change
        text = json.dumps(altered).encode()
        path.write_bytes(data[:8] + len(text).to_bytes(8, "little") + text + data[16 + length :])
        assert read_packed(path) is None


@pytest.mark.parametrize("codec", ["f32", "bf16"])
def test_codecs_without_leading_bits(codec: str, tiny_folder: Folder) -> None:
    with pytest.raises(InputError, match="int8, int4"):
        NativeExecutor.load(tiny_folder("llama-head-dim"), codec=codec, leading=4)


def test_sizes_follow_from_the_configuration(tiny_folder: Folder) -> None:
    config = open_model(tiny_folder("llama-head-dim")).config
    found = {s.name: s for s in sections(config, "int8", leading=4)}
    places = offsets(list(found.values()), 0)
    lead, rest = found["layers.0.lead"], found["layers.0.mlp"]
    assert isinstance(lead, Leading)
    assert isinstance(rest, Rest)
    assert lead.rest == rest
    out = np.empty((config.d_ff, 2, config.d_model), np.int8)
    zeros = [np.zeros(places[name][1], np.uint8) for name in (lead.name, rest.name)]
    _core.join_nested(*zeros, 4, out)  # refuses other sizes
    assert (out == -128).all()


@pytest.mark.parametrize(("codec", "leading"), CUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_passes_equal_the_dense_model(codec: str, leading: int, family: str, tiny_folder: Folder) -> None:
    model = open_model(tiny_folder(family))
    tokens = prompt(CASES[family])
    decoded, prefilled = [], []
    for bits in (0, leading):
        packed = pack_in_memory(model.config, model.weights, codec, 1, leading=bits)
        executor = NativeExecutor(packed, threads=2)
        prefilled.append(executor.prefill(tokens, executor.new_cache(), all_logits=True))
        cache = executor.new_cache()
        decoded.append(np.array([executor.decode(np.array([t]), [cache]) for t in tokens]))
    for dense, halves in (decoded, prefilled):
        assert np.abs(dense - halves).max() <= TOLERANCES[f"native_{codec}"] * np.abs(dense).max()
