"""Writing safetensors files."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from numpy.typing import NDArray

_NAMES = {"float32": "F32", "float16": "F16", "int8": "I8", "int32": "I32", "int64": "I64", "uint8": "U8"}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I32": 4, "I64": 8, "U8": 1}


def write_safetensors(
    stream: BinaryIO, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `arrays` of float32, float16, int8, int32, int64 or uint8 in their order. `KeyError`: another dtype."""
    tensors = {name: (_NAMES[array.dtype.name], array.shape) for name, array in arrays.items()}
    write_header(stream, tensors, metadata)
    for array in arrays.values():
        stream.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())


def write_header(
    stream: BinaryIO,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write what precedes the data of `tensors`: name -> dtype ("F32", "BF16", ...) and shape.

    Their little-endian values follow in the same order, without gaps.
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + _BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins aligned
    stream.write(len(text).to_bytes(8, "little") + text)
