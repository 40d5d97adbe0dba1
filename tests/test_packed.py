"""The packed file: written whole or not at all, mapped again, never trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavu.codecs import CODECS
from dejavu.engine import NativeExecutor, synthetic
from dejavu.engine import native as native_module
from dejavu.engine.layout import sections
from dejavu.engine.native import kv_bytes_per_token, packed_path
from dejavu.engine.packed import anonymous, pack_in_memory, read_packed, write_packed
from dejavu.errors import CacheError, InputError, NumericsError
from dejavu.models.config import ModelConfig
from dejavu.models.loading import open_model
from tiny_models import CASES, prompt

if TYPE_CHECKING:
    from collections.abc import Callable

    Folder = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))


def logits(executor: NativeExecutor) -> np.ndarray:
    return executor.prefill(prompt(CASES["llama-head-dim"]), executor.new_cache(), all_logits=True)


@pytest.mark.parametrize("codec", CODECS)
def test_a_second_start_maps_the_file_and_gives_the_same_bits(
    codec: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder("llama-head-dim")
    first = NativeExecutor.load(folder, codec=codec)
    assert packed_path(folder, codec).exists()

    def fail(path: Path) -> None:
        raise AssertionError(f"{path} was opened again")

    with monkeypatch.context() as patch:
        patch.setattr(native_module, "open_model", fail)
        second = NativeExecutor.load(folder, codec=codec)
    memory = NativeExecutor.load(folder, codec=codec, cache=False)
    np.testing.assert_array_equal(logits(first), logits(second))
    np.testing.assert_array_equal(logits(first), logits(memory))


def test_a_changed_model_is_packed_again(tiny_folder: Folder, tmp_path: Path) -> None:
    import os
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama-head-dim"), folder)
    NativeExecutor.load(folder, codec="int8")
    NativeExecutor.load(folder, codec="int4")
    before = packed_path(folder, "int8")
    assert before.exists()
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert packed_path(folder, "int8") != before
    NativeExecutor.load(folder, codec="int8")
    assert not before.exists()
    assert len(list(before.parent.glob("*.dejavu"))) == 2  # the new one, and int4 as it was


@pytest.mark.parametrize(
    "damage",
    ["empty", "magic", "header", "short", "long", "json", "sections", "offset", "config", "version"],
)
def test_a_damaged_file_is_packed_again(damage: str, tiny_folder: Folder) -> None:
    folder = tiny_folder("llama-head-dim")
    expected = logits(NativeExecutor.load(folder, codec="int8"))
    path = packed_path(folder, "int8")
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[8:16], "little")
    header = json.loads(data[16 : 16 + length])
    if damage == "empty":
        data = bytearray()
    elif damage == "magic":
        data[0] ^= 1
    elif damage == "header":
        data[8:16] = (2**63).to_bytes(8, "little")
    elif damage == "short":
        data = data[:-64]
    elif damage == "long":
        data += b"\0"
    elif damage == "json":
        data[20] = 0xFF
    else:
        if damage == "sections":
            header["sections"]["layers.0.mlp"][1] += 64
        elif damage == "offset":
            header["sections"]["layers.0.mlp"][0] += 64
        elif damage == "config":
            header["config"]["d_ff"] = 10**9
        else:
            header["version"] = 999
        text = json.dumps(header).encode().ljust(length)[:length]
        data[16 : 16 + length] = text
    path.write_bytes(data)
    assert read_packed(path) is None
    np.testing.assert_array_equal(logits(NativeExecutor.load(folder, codec="int8")), expected)
    assert read_packed(path) is not None


def test_a_section_outside_the_file_never_reaches_the_engine(tiny_folder: Folder) -> None:
    folder = tiny_folder("llama-head-dim")
    NativeExecutor.load(folder, codec="int8")
    path = packed_path(folder, "int8")
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[8:16], "little")
    header = json.loads(data[16 : 16 + length])
    offset, size = header["sections"]["layers.1.mlp"]
    packed = read_packed(path)
    assert packed is not None
    for bad in (len(data), len(data) - size + 64, 2**62):
        header["sections"]["layers.1.mlp"] = [bad, size]
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= length
        data[16 : 16 + length] = text.ljust(length)
        path.write_bytes(data)
        assert read_packed(path) is None
        places = packed.places | {"layers.1.mlp": (bad, size)}
        with pytest.raises(ValueError, match="outside the buffer"):
            NativeExecutor(type(packed)(packed.config, packed.codec, "", places, packed.buffer))
    places = packed.places | {"layers.1.mlp": (offset, size - 64)}
    with pytest.raises(ValueError, match="bytes instead of"):
        NativeExecutor(type(packed)(packed.config, packed.codec, "", places, packed.buffer))


def test_an_unwritable_cache_is_an_error_that_names_the_way_out(tiny_folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(CacheError, match="fix:"):
        NativeExecutor.load(tiny_folder("llama-head-dim"), codec="int8")


def test_nothing_is_left_when_packing_stops_half_way(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder("llama-head-dim")
    model = open_model(folder)
    read = type(model.weights).read

    def interrupted(self: object, name: str, *rest: object) -> object:
        if name.startswith("layers.1."):
            raise KeyboardInterrupt
        return read(self, name, *rest)

    monkeypatch.setattr(type(model.weights), "read", interrupted)
    path = packed_path(folder, "int8")
    with pytest.raises(KeyboardInterrupt):
        write_packed(path, model.config, model.weights, "int8", 1)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["layers.1.up.weight", "final_norm.weight"])
@pytest.mark.parametrize("codec", CODECS)
def test_nan_weights_are_refused(
    name: str, codec: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(tiny_folder("llama-head-dim"))
    read = type(model.weights).read

    def poisoned(self: object, wanted: str, *rest: int) -> np.ndarray:
        values = read(self, wanted, *rest)
        if wanted == name:
            values.reshape(-1)[7] = np.nan
        return values

    monkeypatch.setattr(type(model.weights), "read", poisoned)
    with pytest.raises(NumericsError, match="NaN"):
        pack_in_memory(model.config, model.weights, codec, 1)


def test_options_out_of_range(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder("llama-head-dim")
    with pytest.raises(InputError, match="KV type"):
        NativeExecutor.load(folder, codec="int8", kv_dtype="f8")
    for threads in (0, -1, 1025):
        with pytest.raises(InputError, match="threads"):
            NativeExecutor.load(folder, codec="int8", leading=4, threads=threads)
    monkeypatch.setenv("DEJAVU_ISA", "mmx")
    with pytest.raises(InputError, match="DEJAVU_ISA=mmx"):
        NativeExecutor.load(folder, codec="int8", leading=4)
    assert not packed_path(folder, "int8", leading=4).exists()  # nothing was packed for it


def test_synthetic_models_and_touched_bytes() -> None:
    config = ModelConfig("llama", 200, 96, 2, 4, 2, 24, 160, 64, tied_head=False)
    executor = synthetic(config, "int4", threads=1)
    cache = executor.new_cache()
    found = executor.prefill(np.arange(10, dtype=np.int32), cache, all_logits=True)
    assert np.isfinite(found).all()
    assert found.std() > 0
    touched = executor.touched_bytes(10)
    every = sum(
        section.nbytes for section in sections(config, "int4") if section.name not in ("embed.weight",)
    )
    norms = sum(s.nbytes for s in sections(config, "int4") if s.name.endswith("norm.weight"))
    assert touched["attention"] + touched["mlp"] + touched["head"] == every - norms
    assert touched["kv"] == 10 * kv_bytes_per_token(config, "f16") == 10 * 2 * 2 * 2 * 24 * 2


def test_bytes_of_a_window() -> None:
    windows = {"sliding_window": 16, "window_layers": (True, False)}
    config = ModelConfig("llama", 200, 96, 2, 4, 2, 24, 160, 64, tied_head=False, **windows)
    executor = synthetic(config, "f32", threads=1)
    one = kv_bytes_per_token(config, "f16") // 2
    assert [executor.touched_bytes(n)["kv"] for n in (10, 40)] == [20 * one, (16 + 40) * one]


def huge_pages(data: np.ndarray) -> int:
    """Bytes of the mapping that holds `data` which lie in huge pages of private memory, as Linux counts them."""
    at, inside = data.ctypes.data, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):
            start, end = (int(border, 16) for border in key.split("-"))
            inside = start <= at < end
        elif inside and key == "AnonHugePages:":
            return int(rest[0]) << 10
    return 0


@pytest.mark.skipif(
    not os.access("/sys/kernel/mm/transparent_hugepage/enabled", os.R_OK)
    or "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="the system has no huge pages to ask for",
)
def test_memory_for_weights_is_in_huge_pages() -> None:
    memory = anonymous(32 << 20)
    assert not memory.any()
    memory[:] = 1
    assert huge_pages(memory) > 0  # how many depends on what the system has left
    assert int(memory.sum()) == 32 << 20
