"""The safetensors reader against the safetensors library, and against damaged files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy

from dejavu.errors import ModelFormatError, SourceError, UnsupportedModelError
from dejavu.models.safetensors import INDEX_NAME, SafeTensors, load_json

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)


def write_raw(path: Path, header: Any, data: bytes = b"") -> Path:
    """A safetensors file with any header, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 (truncation), as uint16."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_reads_what_the_library_wrote(tmp_path: Path, dtype: type) -> None:
    tensors = {"a": RNG.normal(size=(37, 19)).astype(dtype), "b": RNG.normal(size=5).astype(dtype)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    file = SafeTensors(tmp_path)
    assert set(file.names()) == {"a", "b"}
    assert file.metadata == {"format": "pt"}
    assert file.shape("a") == (37, 19)
    for name, values in tensors.items():
        read = file.read_rows(name)
        assert read.dtype == np.float32
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, values.astype(np.float32))
    permutation = RNG.permutation(37)
    np.testing.assert_array_equal(
        file.read_rows("a", permutation), tensors["a"][permutation].astype(np.float32)
    )
    np.testing.assert_array_equal(
        file.read_rows("a", slice(3, 30, 2), slice(4, 11)), tensors["a"][3:30:2, 4:11].astype(np.float32)
    )
    np.testing.assert_array_equal(file.read_rows("b", slice(1, 4)), tensors["b"][1:4].astype(np.float32))
    file.release()
    np.testing.assert_array_equal(file.read_rows("a"), tensors["a"].astype(np.float32))
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read_rows("a")


def test_bf16(tmp_path: Path) -> None:
    values = np.array([[0.0, -1.5, 3.140625, 1e30], [np.inf, -np.inf, 2.0**-130, -0.0]], np.float32)
    path = write_raw(tmp_path / "m.safetensors", {"w": entry("BF16", (2, 4))}, to_bf16(values).tobytes())
    file = SafeTensors(path)
    assert file.dtype_name("w") == "BF16"
    expected = (to_bf16(values).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(file.read_rows("w"), expected)
    np.testing.assert_array_equal(file.read_rows("w", np.array([1, 0, 1])), expected[[1, 0, 1]])
    np.testing.assert_array_equal(file.read_rows("w", None, slice(1, 3)), expected[:, 1:3])
    # An odd header length leaves the data unaligned.
    odd = write_raw(tmp_path / "odd.safetensors", json.dumps({"w": entry("BF16", (2, 4))}).encode() + b" ",
                    to_bf16(values).tobytes())  # fmt: skip
    np.testing.assert_array_equal(SafeTensors(odd).read_rows("w"), expected)


def shards(folder: Path) -> dict[str, np.ndarray]:
    tensors = {f"layers.{i}.w": RNG.normal(size=(4, 3)).astype(np.float32) for i in range(4)}
    names = list(tensors)
    safetensors.numpy.save_file(
        {n: tensors[n] for n in names[:2]}, folder / "model-00001-of-00002.safetensors"
    )
    safetensors.numpy.save_file(
        {n: tensors[n] for n in names[2:]}, folder / "model-00002-of-00002.safetensors"
    )
    weight_map = {n: f"model-0000{1 + (i > 1)}-of-00002.safetensors" for i, n in enumerate(names)}
    write_index(folder, weight_map)
    return tensors


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards(tmp_path: Path) -> None:
    tensors = shards(tmp_path)
    file = SafeTensors(tmp_path)
    assert list(file.names()) == list(tensors)
    for name, values in tensors.items():
        np.testing.assert_array_equal(file.read_rows(name), values)
    before = file.fingerprint
    file.close()
    again = SafeTensors(tmp_path / INDEX_NAME)
    assert again.fingerprint == before
    again.close()


def test_fingerprint_follows_the_weights_and_not_the_place(tmp_path: Path) -> None:
    values = RNG.normal(size=(64, 64)).astype(np.float32)
    prints = []
    for folder, change in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "model.safetensors"
        safetensors.numpy.save_file({"w": values + np.float32(change)}, path)
        prints.append(SafeTensors(path).fingerprint)
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 64


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"", b"", "JSON"),
        (b"[]", b"", "object"),
        (b"{" * 100_000, b"", "JSON"),
        (b'{"a": NaN}', b"", "JSON"),
        (b'{"\xff": 1}', b"", "JSON"),
        (b'{"w": 1, "w": 2}', b"", "duplicate"),
        (b'{"w": ' + b"9" * 5000 + b"}", b"", "JSON"),
        ({"__metadata__": 3}, b"", "__metadata__"),
        ({"w": 3}, b"", "dtype"),
        ({"w": {"dtype": "F32", "shape": [1]}}, b"", "data_offsets"),
        ({"w": entry(shape=(2, -2))}, bytes(16), "shape"),
        ({"w": entry(shape=(True, 4))}, bytes(16), "shape"),
        ({"w": entry(shape=(2.0, 2))}, bytes(16), "shape"),
        ({"w": entry(shape=(2**62, 2**62))}, bytes(16), "bytes"),
        ({"w": entry(shape=(3, 2))}, bytes(16), "24 bytes"),
        ({"w": entry(offsets=(0, 16, 1))}, bytes(16), "data_offsets"),
        ({"w": entry(offsets=(16, 0))}, bytes(16), "data_offsets"),
        ({"w": entry()}, bytes(15), "end"),
        ({"w": entry()}, bytes(17), "end"),
        ({"w": entry(offsets=(8, 24))}, bytes(24), "gap"),
        ({"a": entry(), "b": entry(offsets=(8, 24))}, bytes(24), "overlaps"),
        ({"w": entry(shape=[1] * 9, offsets=(0, 4))}, bytes(4), "shape"),
    ],
)  # fmt: skip
def test_refuses_damaged_headers(tmp_path: Path, header: Any, data: bytes, says: str) -> None:
    path = write_raw(tmp_path / "m.safetensors", header, data)
    with pytest.raises(ModelFormatError, match=says) as caught:
        SafeTensors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"1234", (2**63).to_bytes(8, "little"), (50).to_bytes(8, "little") + b"{}"]
)
def test_refuses_truncated_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError):
        SafeTensors(path)


def test_dtypes(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="F4"):
        SafeTensors(write_raw(tmp_path / "a.safetensors", {"w": entry("F4", (4, 8))}, bytes(16)))
    header = {
        "mask": entry("U8", (4, 4)),
        "scalar": entry("F32", (), (16, 20)),
        "none": entry("F32", (0, 3), (20, 20)),
    }
    file = SafeTensors(write_raw(tmp_path / "b.safetensors", header, bytes(20)))
    assert set(file.names()) == {"mask", "scalar", "none"}
    assert file.read_rows("none").shape == (0, 3)
    for name in ("mask", "scalar"):
        with pytest.raises(UnsupportedModelError, match=name):
            file.read_rows(name)


@pytest.mark.parametrize(
    "file_name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..",
        "",
        INDEX_NAME,
        "x\0.safetensors",
        3,
        None,
    ],
)
def test_index_may_only_name_files_beside_it(tmp_path: Path, file_name: object) -> None:
    write_index(tmp_path, {"w": file_name})
    with pytest.raises(ModelFormatError, match="shard of 'w'"):
        SafeTensors(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_index_without_a_map(tmp_path: Path, weight_map: object) -> None:
    write_index(tmp_path, weight_map)
    with pytest.raises(ModelFormatError, match="weight_map"):
        SafeTensors(tmp_path)


def test_index_that_contradicts_the_shards(tmp_path: Path) -> None:
    shards(tmp_path)
    write_index(tmp_path, {"layers.0.w": "model-00002-of-00002.safetensors"})
    with pytest.raises(ModelFormatError, match=r"layers\.0\.w"):
        SafeTensors(tmp_path)
    write_index(tmp_path, {"layers.0.w": "model-00003-of-00002.safetensors"})
    with pytest.raises(SourceError, match="model-00003"):
        SafeTensors(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    (tmp_path / "model-00001-of-00002.safetensors").symlink_to("model-00001-of-00002.safetensors")
    write_index(tmp_path, {"layers.0.w": "model-00001-of-00002.safetensors"})
    with pytest.raises(SourceError, match="model-00001"):
        SafeTensors(tmp_path)


def test_folders_and_odd_paths(tmp_path: Path) -> None:
    import os

    with pytest.raises(SourceError, match="neither"):
        SafeTensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelFormatError, match="pickled"):
        SafeTensors(tmp_path)
    with pytest.raises(SourceError, match="cannot open"):
        SafeTensors(tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(SourceError, match="regular"):
        SafeTensors(tmp_path / "pipe.safetensors")


def test_json_may_begin_with_a_byte_order_mark() -> None:
    assert load_json(b'\xef\xbb\xbf{"a": 1}', "it") == {"a": 1}
    with pytest.raises(ModelFormatError, match="it: not valid JSON"):
        load_json(b'\xef\xbb\xbf\xef\xbb\xbf{"a": 1}', "it")
