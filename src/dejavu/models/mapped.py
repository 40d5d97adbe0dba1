"""Read-only memory-mapped files and the conversion of their plain floats to float32."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import ModelFormatError, SourceError
from dejavu.models.spec import FETCH_AGAIN

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.models.weights import Rows

FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Plain float types that can be read, and their size in bytes."""

_NUMPY_TYPE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_CHUNK_BYTES = 1 << 20
_SAMPLE_BYTES = 1024


class MappedFile:
    """A regular file, mapped read-only.

    The file must not be truncated while it is mapped: the OS would end the process (SIGBUS). dejavu itself
    only ever replaces files as a whole, which is safe.

    Raises:
        SourceError: the file is missing, unreadable or not a regular file.
        ModelFormatError: it is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # O_NONBLOCK: opening a named pipe must fail below, not wait for a writer.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SourceError(
                f"cannot open {path}: {reason}", fix="check the path and its permissions"
            ) from error
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise SourceError(f"{path} is not a regular file", fix="give the path of a model file")
            self.size = info.st_size
            if self.size == 0:
                raise ModelFormatError(f"{path}: the file is empty", fix=FETCH_AGAIN)
            self.map = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise SourceError(f"cannot map {path}: {error.strerror}") from error
        finally:
            os.close(fd)

    def array(self, offset: int, shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
        """A view of the mapping (not a copy). Keep it no longer than the call: it blocks `close`."""
        count = int(np.prod(shape, dtype=object)) if shape else 1
        flat: NDArray[np.generic] = np.frombuffer(self.map, dtype=dtype, count=count, offset=offset)
        return flat.reshape(shape)

    def release(self) -> None:
        """Drop the mapped pages from the resident set."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap; where the traceback of an error (Ctrl-C too) still holds a view, the mapping goes with it."""
        with contextlib.suppress(BufferError):
            self.map.close()


def fingerprint(parts: Iterable[tuple[MappedFile, int, Iterable[tuple[int, int]]]]) -> str:
    """Sha256 (hex) of each file's size and header and of three samples (start, middle, end) of each tensor.

    Reading every byte would cost seconds per start. A change that spares all samples goes unnoticed; a
    fine-tuned, requantised or otherwise retrained model does not.

    Args:
        parts: per file: the mapping, the header's length in bytes, and (offset, bytes) of its tensors.
    """
    digest = hashlib.sha256()
    for file, header_bytes, tensors in parts:
        digest.update(f"{file.size} {header_bytes}\n".encode())
        with memoryview(file.map) as data:
            for start in range(0, header_bytes, _CHUNK_BYTES):
                digest.update(data[start : min(start + _CHUNK_BYTES, header_bytes)])
            for offset, nbytes in tensors:
                length = min(nbytes, _SAMPLE_BYTES)
                for start in (0, (nbytes - length) // 2, nbytes - length):
                    digest.update(data[offset + start : offset + start + length])
    return digest.hexdigest()


def to_float32(source: NDArray[np.generic], dtype: str, out: NDArray[np.float32]) -> None:
    """Convert an array of one of `FLOAT_BYTES` (BF16 as uint16) into `out` of the same shape."""
    if dtype == "BF16":
        np.left_shift(source, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    else:
        # An F64 beyond float32's range becomes infinity, which the executors' NaN check reports.
        with np.errstate(over="ignore"):
            np.copyto(out, source, casting="same_kind")


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[np.generic]:
    """`values` as F32, F16 or BF16 (rounded to nearest even; BF16 as uint16); beyond F16's range: infinity."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    with np.errstate(over="ignore"):
        return values.astype(_NUMPY_TYPE[dtype])


def read_floats(
    file: MappedFile, offset: int, shape: tuple[int, ...], dtype: str, rows: Rows, cols: slice | None
) -> NDArray[np.float32]:
    """Rows and columns of a plain float tensor (1-D or 2-D) as a fresh C-contiguous float32 array."""
    source = file.array(offset, shape, _NUMPY_TYPE[dtype])
    if cols is not None:
        source = source[:, cols]
    if rows is None or isinstance(rows, slice):
        part = source if rows is None else source[rows]
        out = np.empty(part.shape, dtype=np.float32)
        to_float32(part, dtype, out)
        return out
    out = np.empty((len(rows), *source.shape[1:]), dtype=np.float32)
    # Picking rows copies them: a piece at a time, so that no second copy of the tensor is ever held.
    step = max(1, _CHUNK_BYTES // max(1, out.itemsize * out[:1].size))
    for start in range(0, len(rows), step):
        piece = slice(start, start + step)
        to_float32(source[rows[piece]], dtype, out[piece])
    return out
