"""Named float32 tensors for the executors: protocols, and views that cut them from a file's own tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from dejavu.errors import ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Rows = slice | NDArray[np.int64] | None
"""Which rows: a slice with a positive step, an index array, or all (None)."""

COLUMN_STEP = 256
"""Borders of `Weights.read_columns` are multiples of this (the longest block of any format) or the end."""


class RawTensors(Protocol):
    """The tensors of a model file (or of several shards) under the names that the file gives them."""

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) that changes with the header, the size or the sampled bytes of any tensor."""

    def names(self) -> Collection[str]:
        """Names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape, slowest axis first. Raises `KeyError` for an unknown name."""

    def dtype_name(self, name: str) -> str:
        """Storage type as the format calls it: "F32", "BF16", "Q4_1", ..."""

    def read_rows(self, name: str, rows: Rows = None, cols: slice | None = None) -> NDArray[np.float32]:
        """Rows (and columns) of a 2-D tensor, or entries of a 1-D one, as fresh C-contiguous float32."""

    def release(self) -> None:
        """Let the OS drop the pages read so far; they are read from the file again when needed."""

    def close(self) -> None:
        """Unmap the files. Reading afterwards raises `ValueError`."""


class Weights(Protocol):
    """A model's tensors under dejavu's own names, always read as float32.

    Linears are ``[out, in]``. `tensors.tensor_shapes` lists the names.
    """

    @property
    def fingerprint(self) -> str:
        """Stable id of the weights' bytes; equal for equal files, wherever they lie."""

    def names(self) -> Collection[str]:
        """Names of all tensors of the model."""

    def __contains__(self, name: object) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor. Raises `KeyError` for an unknown name, like the readers below."""

    def source_type(self, name: str) -> str:
        """Storage type in the file: "F32", "BF16", "Q4_1", ..."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows ``start:stop`` as C-contiguous float32 ``[stop - start, cols]`` (1-D: ``[stop - start]``)."""

    def read_columns(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Columns ``start:stop`` of a 2-D tensor as float32 ``[rows, stop - start]``.

        Borders are multiples of `COLUMN_STEP` or the end.
        """

    def release(self) -> None:
        """Let the OS drop the pages read so far, so that the resident set stays small while loading."""

    def close(self) -> None:
        """Give the files back."""


@dataclass(frozen=True, eq=False)
class TensorView:
    """How a tensor of the model is cut from a tensor of the file.

    The result is ``source[rows] * scale + add``.
    """

    source: str
    """Name in the file."""
    rows: Rows = None
    """Rows to take: a part of a fused matrix, or a permutation."""
    add: float = 0.0
    """Constant to add to every entry (Gemma stores its norm weights minus one)."""
    scale: float = 1.0
    """Factor on every entry (MiniCPM scales branches and logits; the factors are folded into the weights)."""


class MappedWeights:
    """`Weights` read through a table of views from the tensors of a file.

    Args:
        tensors: the file's tensors; `close` closes them.
        table: dejavu's name -> view.

    Raises:
        ModelFormatError: a view names a tensor that the file lacks, or rows outside it.
    """

    def __init__(self, tensors: RawTensors, table: Mapping[str, TensorView]) -> None:
        self._tensors = tensors
        self._table = dict(table)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._rows: dict[str, range | NDArray[np.int64]] = {}
        available = set(tensors.names())
        for name, view in self._table.items():
            if view.source not in available:
                raise ModelFormatError(f"the model file has no tensor {view.source!r} (needed for {name})")
            self._add_view(name, view)

    def _add_view(self, name: str, view: TensorView) -> None:
        shape = self._tensors.shape(view.source)
        if len(shape) not in (1, 2):
            raise ModelFormatError(
                f"tensor {view.source!r} has shape {list(shape)}; {name} needs a 1-D or 2-D tensor"
            )
        n = shape[0]
        rows: range | NDArray[np.int64]
        if view.rows is None:
            rows = range(n)
        elif isinstance(view.rows, slice):
            start, stop, step = view.rows.start or 0, view.rows.stop, view.rows.step or 1
            stop = n if stop is None else stop
            if not 0 <= start <= stop <= n or step < 1:
                raise ModelFormatError(f"{name} needs rows {start}:{stop} of {view.source!r}, which has {n}")
            rows = range(start, stop, step)
        else:
            rows = np.asarray(view.rows, dtype=np.int64)
            if rows.ndim != 1 or (rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < n):
                raise ModelFormatError(f"{name} needs rows outside {view.source!r}, which has {n}")
        self._rows[name] = rows
        self._shapes[name] = (len(rows), *shape[1:])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the file's tensors."""
        return self._tensors.fingerprint

    def names(self) -> Collection[str]:
        """Names of all tensors of the model, in the table's order."""
        return self._table.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor; `KeyError` for an unknown name."""
        return self._shapes[name]

    def source_type(self, name: str) -> str:
        """Storage type in the file."""
        return self._tensors.dtype_name(self._table[name].source)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows ``start:stop`` as C-contiguous float32. Raises `IndexError` outside the tensor."""
        shape = self._shapes[name]
        stop = shape[0] if stop is None else stop
        if not 0 <= start <= stop <= shape[0]:
            raise IndexError(f"rows {start}:{stop} of {name}, which has {shape[0]}")
        return self._cut(name, start, stop, None)

    def read_columns(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Columns ``start:stop`` as C-contiguous float32 ``[rows, stop - start]``.

        Raises:
            IndexError: not a 2-D tensor, outside it, or a border that is neither a multiple of `COLUMN_STEP`
                nor the end.
        """
        shape = self._shapes[name]
        if len(shape) != 2:
            raise IndexError(f"{name} has shape {shape}: no columns")
        if not 0 <= start <= stop <= shape[1] or any(
            x % COLUMN_STEP and x != shape[1] for x in (start, stop)
        ):
            raise IndexError(
                f"columns {start}:{stop} of {name}, which has {shape[1]} (steps of {COLUMN_STEP})"
            )
        return self._cut(name, 0, shape[0], slice(start, stop))

    def _cut(self, name: str, start: int, stop: int, cols: slice | None) -> NDArray[np.float32]:
        view = self._table[name]
        rows = self._rows[name][start:stop]
        take: Rows = slice(rows.start, rows.stop, rows.step) if isinstance(rows, range) else rows
        out = self._tensors.read_rows(view.source, take, cols)
        if view.scale != 1:
            out *= np.float32(view.scale)
        if view.add:
            out += np.float32(view.add)
        return out

    def release(self) -> None:
        """Let the OS drop the pages read so far."""
        self._tensors.release()

    def close(self) -> None:
        """Close the file's tensors."""
        self._tensors.close()
