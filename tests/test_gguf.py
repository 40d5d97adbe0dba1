"""The GGUF reader against the gguf package, and against damaged headers."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavu.errors import ModelFormatError, SourceError, UnsupportedModelError
from dejavu.models.gguf import GgufFile
from dejavu.models.gguf_header import TYPES
from dejavu.models.weights import MappedWeights, TensorView

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RNG = np.random.default_rng(0)
KINDS = [Type[name] for name, _, _ in TYPES.values()]


def random_blocks(kind: Type, shape: tuple[int, ...]) -> np.ndarray:
    """Random stored bytes of a tensor, the same in every run: all values of every field, NaN and infinite scales too."""
    _, block, block_bytes = TYPES[kind.value]
    rng = np.random.default_rng([kind.value, *shape])
    return rng.integers(0, 256, (*shape[:-1], shape[-1] // block * block_bytes), dtype=np.uint8)


def write_gguf(
    path: Path, tensors: dict[str, tuple[Type, np.ndarray]], fill: Callable[[Any], None] | None = None
) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if fill:
        fill(writer)
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_equals_the_gguf_package(tmp_path: Path, kind: Type) -> None:
    shape = (70, 1024)
    stored = random_blocks(kind, shape)
    vector = random_blocks(kind, (512,))
    file = GgufFile(write_gguf(tmp_path / "m.gguf", {"w": (kind, stored), "v": (kind, vector)}))
    with np.errstate(all="ignore"):
        expected = dequantize(stored, kind)
        expected_vector = dequantize(vector, kind)
    assert expected.shape == shape
    tensors = file.tensors
    assert (tensors.shape("w"), tensors.dtype_name("w")) == (shape, kind.name)
    assert tensors.shape("v") == (512,)
    read = tensors.read_rows("w")
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_array_equal(tensors.read_rows("v"), expected_vector)
    np.testing.assert_array_equal(tensors.read_rows("v", slice(3, 300, 7)), expected_vector[3:300:7])
    np.testing.assert_array_equal(tensors.read_rows("w", slice(5, 66, 3)), expected[5:66:3])
    permutation = RNG.permutation(70)
    np.testing.assert_array_equal(tensors.read_rows("w", permutation), expected[permutation])
    for cols in (slice(256, 768), slice(0, 1024), slice(1023, 1024), slice(31, 289), slice(7, 7)):
        np.testing.assert_array_equal(
            tensors.read_rows("w", permutation, cols), expected[permutation][:, cols]
        )
        np.testing.assert_array_equal(tensors.read_rows("w", None, cols), expected[:, cols])
    tensors.release()
    np.testing.assert_array_equal(tensors.read_rows("w", slice(0, 2)), expected[:2])
    file.close()
    with pytest.raises(ValueError):
        tensors.read_rows("w")


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_views_of_quantised_tensors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    stored = gguf.quants.quantize(RNG.normal(size=(40, 544)).astype(np.float32), Type.Q4_1)
    path = write_gguf(tmp_path_factory.mktemp("view") / "m.gguf", {"w": (Type.Q4_1, stored)})
    full = dequantize(stored, Type.Q4_1)
    rows = data.draw(st.one_of(st.none(), st.lists(st.integers(0, 39), max_size=50).map(np.array)))
    if isinstance(rows, np.ndarray):
        rows = rows.astype(np.int64)
    file = GgufFile(path)
    weights = MappedWeights(file.tensors, {"x": TensorView("w", rows)})
    picked = full if rows is None else full[rows]
    np.testing.assert_array_equal(weights.read("x"), picked)
    np.testing.assert_array_equal(weights.read_columns("x", 256, 544), picked[:, 256:544])
    weights.close()


def fill_metadata(writer: Any) -> None:
    writer.add_uint8("x.u8", 200)
    writer.add_int8("x.i8", -100)
    writer.add_uint16("x.u16", 60000)
    writer.add_int16("x.i16", -30000)
    writer.add_uint32("x.u32", 2**32 - 1)
    writer.add_int32("x.i32", -(2**31))
    writer.add_uint64("x.u64", 2**64 - 1)
    writer.add_int64("x.i64", -(2**63))
    writer.add_float32("x.f32", 1.5)
    writer.add_float64("x.f64", 0.1)
    writer.add_bool("x.yes", True)
    writer.add_string("x.text", "naïve 🙂")
    writer.add_array("x.ints", [1, -2, 3])
    writer.add_array("x.floats", [0.5, -1.0])
    writer.add_array("x.bools", [True, False, True])
    writer.add_array("x.strings", ["", "Ġa", "🙂"])


def test_metadata(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, fill_metadata)
    metadata = GgufFile(path).metadata
    assert metadata == {
        "general.architecture": "llama",
        "x.u8": 200, "x.i8": -100, "x.u16": 60000, "x.i16": -30000, "x.u32": 2**32 - 1, "x.i32": -(2**31),
        "x.u64": 2**64 - 1, "x.i64": -(2**63), "x.f32": 1.5, "x.f64": 0.1, "x.yes": True,
        "x.ints": [1, -2, 3], "x.floats": [0.5, -1.0], "x.bools": [True, False, True],
        "x.text": "naïve 🙂", "x.strings": ["", "Ġa", "🙂"],
    }  # fmt: skip
    assert metadata["x.yes"] is True


def test_large_vocabulary_is_fast(tmp_path: Path) -> None:
    tokens = [f"token{i}" for i in range(50_000)]
    path = write_gguf(tmp_path / "m.gguf", {}, lambda w: (w.add_array("t", tokens), w.add_array("m", tokens)))
    best = 1e9
    for _ in range(3):
        start = time.process_time()
        file = GgufFile(path)
        best = min(best, time.process_time() - start)
        assert file.metadata["m"] == tokens
    assert best < 0.3


# ------------------------------------------------------------------ hand-made headers


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str | bytes = "w", dims: tuple[int, ...] = (32, 2), kind: int = 0, offset: int = 0) -> bytes:
    head = text(name) + struct.pack("<I", len(dims))
    return head + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)


def raw_gguf(
    path: Path,
    pairs: list[bytes],
    infos: list[bytes],
    data: int = 0,
    *,
    counts: tuple[int, int] | None = None,
    version: int = 3,
    magic: bytes = b"GGUF",
) -> Path:
    n_infos, n_pairs = counts or (len(infos), len(pairs))
    content = magic + struct.pack("<IQQ", version, n_infos, n_pairs) + b"".join(pairs + infos)
    path.write_bytes(content + bytes(-len(content) % 32) + bytes(data))
    return path


def array(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def test_hand_made_header_is_sound(tmp_path: Path) -> None:
    for version in (2, 3):
        path = raw_gguf(tmp_path / "m.gguf", [pair("a", 4, u32(7))], [info()], 256, version=version)
        file = GgufFile(path)
        assert file.metadata == {"a": 7}
        assert file.tensors.read_rows("w").shape == (2, 32)
        assert file.version == version


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "magic": ({"magic": b"GGML"}, "not a GGUF"),
    "version 1": ({"version": 1}, "version 1"),
    "version 4": ({"version": 4}, "version 4"),
    "big-endian": ({"version": 3 << 24}, "big-endian"),
    "huge tensor count": ({"counts": (2**63, 0)}, "tensors"),
    "huge key count": ({"counts": (0, 2**63)}, "metadata entries"),
    "too many keys": ({"counts": (0, 5)}, "offset"),
    "too many tensors": ({"infos": [info()], "data": 256, "counts": (2, 0)}, "empty"),
    "empty key": ({"pairs": [pair("", 4, u32(1))]}, "empty"),
    "twice the key": ({"pairs": [pair("a", 4, u32(1))] * 2}, "twice"),
    "key not UTF-8": ({"pairs": [pair(b"\xff\xfe", 4, u32(1))]}, "UTF-8"),
    "key too long": ({"pairs": [struct.pack("<Q", 2**40) + bytes(50)]}, "limit"),
    "string past the end": ({"pairs": [pair("a", 8, struct.pack("<Q", 60_000) + bytes(50))]}, "60000"),
    "string not UTF-8": ({"pairs": [pair("a", 8, text(b"\xc3("))]}, "UTF-8"),
    "unknown value type": ({"pairs": [pair("a", 13, u32(1))]}, "unknown type 13"),
    "bad bool": ({"pairs": [pair("a", 7, b"\2")]}, "boolean"),
    "nested array": ({"pairs": [pair("a", 9, array(9, 1, array(4, 1, u32(1))))]}, "array of arrays"),
    "array of unknown type": ({"pairs": [pair("a", 9, array(99, 1, u32(1)))]}, "unknown type 99"),
    "huge array": ({"pairs": [pair("a", 9, array(4, 2**62, u32(1)))]}, "claims"),
    "huge string array": ({"pairs": [pair("a", 9, array(8, 2**61, text("x")))]}, "claims"),
    "string array past the end": (
        {"pairs": [pair("a", 9, array(8, 2, text("x") + struct.pack("<Q", 2**50) + bytes(40)))]},
        "past the end",
    ),
    "string array cut": ({"pairs": [pair("a", 9, array(8, 6, text("x" * 40) + text("y")))]}, "within string"),
    "string array not UTF-8": ({"pairs": [pair("a", 9, array(8, 1, text(b"\xff")))]}, "UTF-8"),
    "array of bad bools": ({"pairs": [pair("a", 9, array(7, 3, b"\1\3\0"))]}, "boolean"),
    "alignment 0": ({"pairs": [pair("general.alignment", 4, u32(0))]}, "alignment"),
    "alignment 24": ({"pairs": [pair("general.alignment", 4, u32(24))]}, "alignment"),
    "alignment text": ({"pairs": [pair("general.alignment", 8, text("32"))]}, "alignment"),
    "alignment bool": ({"pairs": [pair("general.alignment", 7, b"\1")]}, "alignment"),
    "twice the tensor": ({"infos": [info(), info(offset=256)], "data": 512}, "twice"),
    "tensor name not UTF-8": ({"infos": [info(b"\xff")], "data": 256}, "UTF-8"),
    "tensor without name": ({"infos": [info("")], "data": 256}, "empty"),
    "no dims": ({"infos": [info(dims=())], "data": 256}, "dimensions"),
    "five dims": ({"infos": [info(dims=(1,) * 5)], "data": 256}, "dimensions"),
    "rank of 2^32-1": ({"infos": [text("w") + u32(2**32 - 1) + bytes(64)], "data": 256}, "dimensions"),
    "zero dim": ({"infos": [info(dims=(32, 0))], "data": 256}, "dims"),
    "dims that overflow": ({"infos": [info(dims=(2**32, 2**32, 2**32))], "data": 256}, "dims"),
    "dims that wrap to a small size": ({"infos": [info(dims=(2**63 + 32, 2))], "data": 256}, "dims"),
    "part of a block": ({"infos": [info(dims=(33, 2), kind=8)], "data": 256}, "blocks of 32"),
    "unknown type": ({"infos": [info(kind=77)], "data": 256}, "unknown type number 77"),
    "misaligned": ({"infos": [info(offset=8)], "data": 512}, "alignment"),
    "overlapping": ({"infos": [info(), info("v", offset=224)], "data": 512}, "overlaps"),
    "same place": ({"infos": [info(), info("v")], "data": 512}, "overlaps"),
    "past the end": ({"infos": [info(offset=32)], "data": 256}, "ends at"),
    "far past the end": ({"infos": [info(offset=2**64 - 32)], "data": 256}, "ends at"),
    "cut data": ({"infos": [info()], "data": 255}, "ends at"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refuses_damaged_headers(tmp_path: Path, case: str) -> None:
    made, says = CASES[case]
    path = raw_gguf(tmp_path / "m.gguf", **{"pairs": [], "infos": [], **made})
    with pytest.raises(ModelFormatError, match=says) as caught:
        GgufFile(path)
    assert str(path) in str(caught.value)
    assert "offset" in str(caught.value)


def test_refuses_what_it_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"IQ2_XS.*supported: F32"):
        GgufFile(raw_gguf(tmp_path / "m.gguf", [], [info(dims=(256, 2), kind=17)], 256))
    with pytest.raises(UnsupportedModelError, match="parts"):
        GgufFile(raw_gguf(tmp_path / "m.gguf", [pair("split.count", 2, struct.pack("<H", 3))], []))
    cube = GgufFile(raw_gguf(tmp_path / "c.gguf", [], [info(dims=(4, 4, 4))], 256))
    with pytest.raises(UnsupportedModelError, match="shape"):
        cube.tensors.read_rows("w")
    with pytest.raises(SourceError):
        GgufFile(tmp_path / "missing.gguf")
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(ModelFormatError, match="empty"):
        GgufFile(tmp_path / "empty.gguf")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    stored = random_blocks(Type.Q8_0, (3, 64))
    whole = write_gguf(tmp_path / "m.gguf", {"w": (Type.Q8_0, stored)}, fill_metadata).read_bytes()
    path = tmp_path / "cut.gguf"
    last = GgufFile(tmp_path / "m.gguf").tensors
    needed = last._infos["w"].offset + last._infos["w"].nbytes
    for length in range(needed):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFormatError):
            GgufFile(path)
    path.write_bytes(whole[:needed])
    with np.errstate(all="ignore"):
        expected = dequantize(stored, Type.Q8_0)
    np.testing.assert_array_equal(GgufFile(path).tensors.read_rows("w"), expected)


def test_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    stored = random_blocks(Type.Q8_0, (64, 64))
    prints = []
    for name, change in (("a", 0), ("b", 0), ("c", 1)):
        data = stored ^ np.uint8(change)
        prints.append(
            GgufFile(write_gguf(tmp_path / f"{name}.gguf", {"w": (Type.Q8_0, data)})).tensors.fingerprint
        )
    assert prints[0] == prints[1] != prints[2]
