"""GGUF files: metadata, and their tensors as `RawTensors`, dequantised piece by piece.

The parsing is our own (`gguf_header`): the gguf package's reader is neither bounded nor fast. Dequantisation
is the gguf package's, whose import takes too long for a start that reads packed weights only: it is imported
when the first quantised tensor is read.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from dejavu.errors import UnsupportedModelError
from dejavu.models.gguf_header import MetadataValue, parse_header
from dejavu.models.mapped import FLOAT_BYTES, MappedFile, fingerprint, read_floats

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.models.gguf_header import Header, TensorInfo
    from dejavu.models.weights import Rows

__all__ = ["GgufFile", "GgufTensors", "MetadataValue"]

_CHUNK = 1 << 16  # entries dequantised at once: the temporaries stay in the cache


class GgufFile:
    """An open GGUF file.

    Attributes:
        path: the file.
        metadata: key -> number, string or list of them, as the file gives them.
        tensors: the file's tensors; close them when done.

    Raises:
        SourceError: the file is missing or unreadable.
        ModelFormatError: it is damaged, hostile or of an unknown version; names the file and the offset.
        UnsupportedModelError: a tensor has an unsupported type, or the file is one part of several.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = MappedFile(path)
        try:
            header = parse_header(file)
        except BaseException:
            file.close()
            raise
        self.version = header.version
        self.metadata = header.metadata
        self.tensors = GgufTensors(file, header)

    def close(self) -> None:
        """Unmap the file."""
        self.tensors.close()


class GgufTensors:
    """`RawTensors` of a GGUF file. Types: F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K."""

    def __init__(self, file: MappedFile, header: Header) -> None:
        self._file = file
        self._header_bytes = header.nbytes
        self._infos = header.infos

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 over size, header and samples of all tensors; see `mapped.fingerprint`."""
        return fingerprint(
            [(self._file, self._header_bytes, [(i.offset, i.nbytes) for i in self._infos.values()])]
        )

    def names(self) -> Collection[str]:
        """Names of all tensors."""
        return self._infos.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape, slowest axis first. Raises `KeyError` for an unknown name."""
        return self._infos[name].shape

    def dtype_name(self, name: str) -> str:
        """Type as GGUF calls it."""
        return self._infos[name].type

    def read_rows(self, name: str, rows: Rows = None, cols: slice | None = None) -> NDArray[np.float32]:
        """Rows and columns as fresh C-contiguous float32; see `RawTensors`.

        Only the blocks that hold them are dequantised.

        Raises:
            UnsupportedModelError: the tensor is neither 1-D nor 2-D.
        """
        info = self._infos[name]
        if len(info.shape) > 2:
            raise UnsupportedModelError(
                f"{self._file.path}: tensor {name!r} has shape {list(info.shape)}; 1-D and 2-D are supported"
            )
        if info.type in FLOAT_BYTES:
            return read_floats(self._file, info.offset, info.shape, info.type, rows, cols)
        if len(info.shape) == 1:
            values = self._dequantise(info, (1, *info.shape), None, cols)[0]
            return values if rows is None else np.ascontiguousarray(values[rows])
        return self._dequantise(info, (info.shape[0], info.shape[1]), rows, cols)

    def _dequantise(
        self, info: TensorInfo, shape: tuple[int, int], rows: Rows, cols: slice | None
    ) -> NDArray[np.float32]:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        start, stop, _ = (cols or slice(None)).indices(shape[1])
        first, last = start // info.block, max(start // info.block, -(-stop // info.block))
        data = cast(
            "NDArray[np.uint8]",
            self._file.array(info.offset, (shape[0], shape[1] // info.block * info.block_bytes), "u1"),
        )[:, first * info.block_bytes : last * info.block_bytes]
        if isinstance(rows, slice):
            data, rows = data[rows], None
        n = len(data) if rows is None else len(rows)
        width = (last - first) * info.block
        out = np.empty((n, stop - start), dtype=np.float32)
        kind = GGMLQuantizationType[info.type]
        step = max(1, _CHUNK // max(1, width))
        # Damaged scales may be infinite or NaN; the executors' check reports them.
        with np.errstate(all="ignore"):
            for begin in range(0, n if out.size else 0, step):
                piece = slice(begin, begin + step)
                part = data[piece] if rows is None else data[rows[piece]]
                # One long row: the package would otherwise work on 16 short rows at a time.
                values = dequantize(np.ascontiguousarray(part).reshape(1, -1), kind).reshape(-1, width)
                out[piece] = values[:, start - first * info.block : stop - first * info.block]
        return out

    def release(self) -> None:
        """Drop the mapped pages from the resident set."""
        self._file.release()

    def close(self) -> None:
        """Unmap the file."""
        self._file.close()
