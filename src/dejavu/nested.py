"""The nested codec: int8 and int4 codes cut into bit planes, so that leading bits can be read without the rest.

The code of a weight is taken as unsigned (int8: plus 128) and cut into planes, the most significant bits first:
2, 1, 1 and (int8) 4 bits wide. The leading b bits of a row are its first planes: one (b = 2), two (3) or three (4).
All planes together are exactly the int8 or int4 row. This is the specification of ``csrc/planes.h``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dejavu.codecs import GROUP, decode
from dejavu.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.codecs import Codec, Encoded

WIDTHS: dict[str, tuple[int, ...]] = {"int8": (2, 1, 1, 4), "int4": (2, 1, 1)}
"""Bits of each plane, the most significant first."""
BITS = (2, 3, 4)
"""How many leading bits can be asked for: those of the first one, two or three planes."""
LEADING = 3
"""Planes that hold the leading bits."""
CHUNK = 64
"""Weights that are packed together."""

_BLOCK = 16 * GROUP


def widths(codec: Codec) -> tuple[int, ...]:
    """Bits of each plane of `codec`. Raises `InputError` where it cannot be cut."""
    if codec not in WIDTHS:
        raise InputError(
            f"codec {codec!r} has no bit planes; those that have: {', '.join(WIDTHS)}",
            fix="use --codec int8 or int4",
        )
    return WIDTHS[codec]


def split(encoded: Encoded) -> list[NDArray[np.uint8]]:
    """The planes of `encoded`: uint8 [n, p] each, of values below 2^width."""
    codes = _unsigned(encoded)
    planes, left = [], sum(widths(encoded.codec))
    for width in widths(encoded.codec):
        left -= width
        planes.append((codes >> left) & np.uint8((1 << width) - 1))
    return planes


def merge(codec: Codec, planes: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The unsigned codes [n, p] whose leading planes are `planes`; bits that were not given are zero."""
    left = sum(widths(codec))
    codes = np.zeros_like(planes[0])
    for plane, width in zip(planes, widths(codec), strict=False):
        left -= width
        codes |= plane << np.uint8(left)
    return codes


def estimate(encoded: Encoded, bits: int) -> NDArray[np.float32]:
    """What the leading `bits` say of the rows, float32 [n, width]: the middle of the codes that they leave open.

    With all bits (int8: 8, int4: 4) this is `codecs.decode`.

    Raises:
        InputError: the codec has no planes, or no plane ends after `bits`.
    """
    ends = np.cumsum(widths(encoded.codec)).tolist()
    if bits not in ends:
        raise InputError(f"{bits} leading bits of {encoded.codec} cannot be read; {ends} can")
    left = ends[-1] - bits
    codes = merge(encoded.codec, split(encoded)[: ends.index(bits) + 1]).astype(np.float32)
    codes += np.float32((2**left - 1) / 2 - (128 if encoded.codec == "int8" else 0))
    return decode(replace(encoded, codes=codes))


def pack(encoded: Encoded) -> list[NDArray[np.uint8]]:
    """The bytes of each plane, [n, chunks * 8 * width]: a chunk of 64 weights after the other.

    Byte i of a chunk of a plane of w bits holds the weights at places i, i + 8 w, i + 16 w, ..., from its lowest
    bits on.
    """
    order = places(encoded.codes.shape[1])
    packed = []
    for plane, width in zip(split(encoded), widths(encoded.codec), strict=True):
        padded = np.concatenate([plane, np.zeros((len(plane), 1), np.uint8)], axis=1)  # index -1: a zero
        fields = padded[:, order].reshape(len(plane), -1, 8 // width, 8 * width)  # [n, chunks, field, byte]
        shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
        packed.append((fields << shifts).sum(axis=2, dtype=np.uint8).reshape(len(plane), -1))
    return packed


def places(padded: int) -> NDArray[np.intp]:
    """Which of `padded` weights of a row lies at each place of its chunks; -1 where the last chunk has none.

    Blocks of sixteen groups: chunk v takes weights 4 v to 4 v + 3 of each group, in the order 0, 2, 1, 3. Groups after
    the last block: a chunk takes two groups, and of each in turn a weight of its first and of its second half.
    """
    blocks = padded // _BLOCK
    weights = np.arange(blocks * _BLOCK).reshape(blocks, 16, 8, 4)  # [block, group, chunk, weight]
    order = weights.transpose(0, 2, 1, 3)[..., [0, 2, 1, 3]].reshape(-1)
    tail = np.arange(blocks * _BLOCK, padded).reshape(-1, 2, GROUP // 2)  # [group, half, weight]
    order = np.concatenate([order, tail.transpose(0, 2, 1).reshape(-1)])
    missing = -padded % CHUNK
    return np.concatenate([order, np.full(missing, -1)]).astype(np.intp)


def _unsigned(encoded: Encoded) -> NDArray[np.uint8]:
    widths(encoded.codec)
    if encoded.codec == "int8":
        return (encoded.codes.astype(np.int16) + 128).astype(np.uint8)
    return encoded.codes.astype(np.uint8)
