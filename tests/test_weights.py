"""Views: every way of cutting a tensor of the model from a tensor of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from dejavu.errors import ModelFormatError
from dejavu.models.mapped import MappedFile
from dejavu.models.safetensors import SafeTensors
from dejavu.models.weights import MappedWeights, TensorView, Weights

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.models.weights import Rows


class Arrays:
    """`RawTensors` over arrays in memory."""

    fingerprint = "none"

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays

    def names(self) -> Collection[str]:
        return self.arrays.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def dtype_name(self, name: str) -> str:
        return "F32"

    def read_rows(self, name: str, rows: Rows = None, cols: slice | None = None) -> NDArray[np.float32]:
        part = self.arrays[name] if rows is None else self.arrays[name][rows]
        return np.array(part if cols is None else part[:, cols], dtype=np.float32, order="C")

    def release(self) -> None: ...
    def close(self) -> None: ...


W = np.arange(12 * 600, dtype=np.float32).reshape(12, 600)
B = np.arange(12, dtype=np.float32)
PERMUTATION = np.array([3, 0, 5, 1], dtype=np.int64)

CASES = {
    "plain": (TensorView("w"), W),
    "slice": (TensorView("w", slice(2, 9)), W[2:9]),
    "open slice": (TensorView("w", slice(4, None)), W[4:]),
    "step": (TensorView("w", slice(1, 12, 3)), W[1::3]),
    "permutation": (TensorView("w", PERMUTATION), W[PERMUTATION]),
    "empty": (TensorView("w", np.array([], dtype=np.int64)), W[:0]),
    "added": (TensorView("w", add=1.0), W + 1),
    "vector": (TensorView("b", slice(3, 7), add=-2.0), B[3:7] - 2),
}


@pytest.mark.parametrize("case", CASES)
@given(data=st.data())
def test_read_equals_the_definition(case: str, data: st.DataObject) -> None:
    view, expected = CASES[case]
    weights: Weights = MappedWeights(Arrays(w=W, b=B), {"x": view})
    assert weights.shape("x") == expected.shape
    assert "x" in weights
    assert "w" not in weights
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    read = weights.read("x", start, stop)
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, expected[start:stop])


@pytest.mark.parametrize("case", [name for name, (_, expected) in CASES.items() if expected.ndim == 2])
def test_read_columns(case: str) -> None:
    view, expected = CASES[case]
    weights = MappedWeights(Arrays(w=W, b=B), {"x": view})
    width = expected.shape[1]
    for start in range(0, width, 256):
        read = weights.read_columns("x", start, min(start + 256, width))
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, expected[:, start : start + 256])


def test_misuse() -> None:
    weights = MappedWeights(Arrays(w=W, b=B), {"x": TensorView("w"), "b": TensorView("b")})
    for start, stop in ((0, 13), (-1, 3), (5, 4)):
        with pytest.raises(IndexError):
            weights.read("x", start, stop)
    for start, stop in ((0, 100), (256, 601), (1, 600), (512, 256)):
        with pytest.raises(IndexError):
            weights.read_columns("x", start, stop)
    with pytest.raises(IndexError):
        weights.read_columns("b", 0, 12)
    with pytest.raises(KeyError):
        weights.read("y")


@pytest.mark.parametrize(
    "view",
    [
        TensorView("missing"),
        TensorView("w", slice(0, 13)),
        TensorView("w", slice(-2, None)),
        TensorView("w", slice(0, 4, -1)),
        TensorView("w", np.array([0, 12])),
        TensorView("w", np.array([-1])),
        TensorView("w", np.array([[0, 1]])),
        TensorView("w", np.array([0, 13])),
        TensorView("scalar"),
        TensorView("cube"),
    ],
)
def test_table_is_checked_against_the_file(view: TensorView) -> None:
    arrays = Arrays(w=W, b=B, scalar=np.zeros(()), cube=np.zeros((2, 2, 2)))
    with pytest.raises(ModelFormatError):
        MappedWeights(arrays, {"x": view})


def test_over_a_real_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"w": W.astype(np.float16)}, path)
    weights = MappedWeights(SafeTensors(path), {"x": TensorView("w", PERMUTATION, add=1.0)})
    assert weights.source_type("x") == "F16"
    assert weights.fingerprint == SafeTensors(path).fingerprint
    assert list(weights.names()) == ["x"]
    np.testing.assert_array_equal(weights.read("x"), W[PERMUTATION].astype(np.float16).astype(np.float32) + 1)
    weights.release()
    weights.close()


def test_an_error_whose_traceback_holds_a_view_does_not_stop_closing(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"\x00\x00\x80?" * 4)
    file = MappedFile(tmp_path / "w")
    view = file.array(0, (4,), "<f4")
    file.close()  # would hide the error, such as Ctrl-C, behind a BufferError
    np.testing.assert_array_equal(view, np.ones(4, np.float32))
