"""The nested codec: int8 rows cut into their leading bits and the others, so that the leading ones can be read alone.

The code of a weight is taken as unsigned (128 + the int8 one) and cut behind its third, fourth or fifth bit. All
leading parts of a matrix lie together, in tiles of sixteen rows, the others with what else belongs to their neuron. Both
together are exactly the int8 row. Where four bits lie apart, estimates may use two or three of them, which reads as much.
Rows of int4 have four bits and are not cut.
This is the specification of ``csrc/parts.h`` and ``csrc/tiles.h``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dejavu.codecs import GROUP, decode
from dejavu.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from dejavu.codecs import Codec, Encoded

LEADING_BITS: dict[str, tuple[int, ...]] = {"int8": (2, 3, 4, 5), "int4": (4,)}
"""Codecs whose leading bits can be read, and how many."""
CUTS: dict[str, tuple[int, ...]] = {"int8": (3, 4, 5), "int4": (4,)}
"""Behind how many leading bits rows can be cut."""
PLANES: dict[int, tuple[tuple[int, int], ...]] = {3: ((2, 0), (1, 2)), 4: ((4, 0),), 5: ((4, 0), (1, 4))}
"""By the number of later bits: the planes in which they are stored, each as (bits of the part, the lowest of them)."""
TILE = 16
"""Rows whose leading bits are stored side by side."""

_BLOCK = 16 * GROUP


def leading_bits(codec: Codec) -> tuple[int, ...]:
    """How many leading bits of `codec` can be asked for. Raises `InputError` where none can."""
    return LEADING_BITS[_nestable(codec)]


def check_bits(codec: Codec, bits: int) -> None:
    """Raise `InputError` where so many leading bits of `codec` cannot be read."""
    if bits not in (found := leading_bits(codec)):
        raise InputError(
            f"{bits} leading bits of {codec} cannot be read; {found} can",
            fix="use --codec int8 with --bits 2 to 5, or int4 with 4",
        )


def stored_bits(used: Iterable[int]) -> int:
    """How many leading bits lie apart in a model whose sketches use as many as `used` says; 0: no sketch, none do.

    Raises:
        InputError: five beside fewer.
    """
    found = set(used)
    if 5 in found and len(found) > 1:
        raise InputError(
            f"sketches of {', '.join(map(str, sorted(found)))} bits in one plan",
            fix="use five leading bits in all layers, or four and fewer",
        )
    return 0 if not found else found.pop() if found in ({3}, {5}) else 4


def check_cut(codec: Codec, leading: int) -> None:
    """Raise `InputError` where rows of `codec` cannot be cut behind `leading` bits; 0: they stay whole."""
    if leading and leading not in CUTS[_nestable(codec)]:
        raise InputError(
            f"{codec} rows cannot be cut behind {leading} bits",
            fix="cut int8 behind 3, 4 or 5, int4 behind 4",
        )


def estimate(encoded: Encoded, bits: int) -> NDArray[np.float32]:
    """What the leading `bits` say of the rows, float32 [n, width]: the middle of the codes that they leave open.

    Four bits of int4 are all there are: `codecs.decode`.

    Raises:
        InputError: the codec has no leading bits, or not so many.
    """
    check_bits(encoded.codec, bits)
    if encoded.codec == "int4":
        return decode(encoded)
    left = 8 - bits
    codes = (_unsigned(encoded) >> left << left).astype(np.float32) + np.float32(2 ** (left - 1) - 128)
    return decode(replace(encoded, codes=codes))


def is_settled_estimate(encoded: Encoded) -> bool:
    """Whether it is sure that int8 codes are what four leading bits say, and stay so when their values are encoded again.

    So it is where they are in the middle of sixteen and the largest of each group is 120; but not for groups that another
    of the scales that are tried could give without error (all codes whole multiples of 24, or of 40).
    """
    codes = encoded.codes.reshape(-1, GROUP).astype(np.int16)
    if not (codes % 16 == 8).all():
        return False
    only = (np.abs(codes).max(axis=1) == 120) & (codes % 24 != 0).any(axis=1) & (codes % 40 != 0).any(axis=1)
    return bool(only.all())


def cut(encoded: Encoded, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The leading `bits` of the codes of int8 rows, and the other bits; [n, p] each."""
    codes, left = _unsigned(encoded), np.uint8(8 - bits)
    return codes >> left, codes & np.uint8((1 << left) - 1)


def tile(part: NDArray[np.uint8], bits: int, scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    """The bytes of the leading bits of up to sixteen rows, side by side.

    A group is eight vectors of 64 bytes: bytes 4 l to 4 l + 3 of vector v are weights 4 v to 4 v + 3 of row l. Of four
    bits, 64 bytes hold two vectors, the first one in the lower halves; of three, the two higher bits of four vectors share
    64 bytes, and then the lowest bits of all eight share 64, the first vector in the lowest bits; of five, the four higher
    bits come as of four, and then the lowest. All groups lie one after the other, then their scales, those of sixteen rows
    together; zeros fill up 64 bytes.

    Args:
        part: the bits of n rows, [n, p]; rows that are missing are zero.
        bits: how many, 3 to 5.
        scales: of the rows, [n, p / 32].

    Returns:
        uint8, one axis.
    """
    n, padded = part.shape
    rows = np.pad(part, ((0, TILE - n), (0, 0))).reshape(TILE, -1, 8, 4)  # [row, group, vector, weight]
    vectors = rows.transpose(1, 2, 0, 3).reshape(padded // GROUP, 8, 64)
    planes = [(4, 0)] if bits == 4 else [(bits - 1, 1), (1, 0)]
    codes = [
        _gathered(
            (vectors >> np.uint8(lowest) & np.uint8(2**width - 1)).reshape(-1, width, 8 // width, 64), width
        )
        for width, lowest in planes
    ]  # [group, width, 64] each
    after = np.pad(scales, ((0, TILE - n), (0, 0))).T  # [group, row]
    found = np.concatenate(
        [np.concatenate(codes, axis=1).reshape(-1), np.ascontiguousarray(after).view(np.uint8).reshape(-1)]
    )
    return np.pad(found, (0, -len(found) % 64))


def pack(part: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The bytes of rows of so many later bits, [n, p] -> [n, p * bits / 8].

    Blocks of sixteen groups have their `PLANES` one after the other. A block is eight vectors of 64 bytes: bytes 4 g to
    4 g + 3 of vector v are weights 8 v to 8 v + 7 of group g: the first four, in the order 0, 2, 1, 3, in the even
    vectors, the others in the odd ones that follow. 8 / w vectors share 64 bytes of a plane of w bits, the first in the
    lowest bits. Groups after the last block: plane by plane, each with 4 w bytes per group; of four bits the first sixteen
    weights lie in the lower halves, of fewer the weights 0, 16, 1, 17 ... follow each other, the first 4 w in the lowest
    bits.
    """
    n, padded = part.shape
    blocks = padded // _BLOCK
    whole = part[:, : blocks * _BLOCK].reshape(n, blocks, 16, 8, 4)  # [n, block, group, vector, weight]
    vectors = whole.transpose(0, 1, 3, 2, 4)[..., [0, 2, 1, 3]].reshape(n, blocks, 8, 64)
    tail = part[:, blocks * _BLOCK :].reshape(n, -1, GROUP)
    mixed = tail.reshape(n, -1, 2, GROUP // 2).swapaxes(2, 3).reshape(tail.shape)
    packed, rest = [], []
    for width, lowest in PLANES[bits]:
        fields = 8 // width
        plane = (vectors >> np.uint8(lowest) & np.uint8(2**width - 1)).reshape(n, blocks, width, fields, 64)
        packed.append(_gathered(plane, width))  # [n, block, width, 64]
        group = tail if width == 4 else mixed
        plane = (group >> np.uint8(lowest) & np.uint8(2**width - 1)).reshape(n, -1, fields, 4 * width)
        rest.append(_gathered(plane, width).reshape(n, -1))
    return np.concatenate([np.concatenate(packed, axis=2).reshape(n, -1), *rest], axis=1)


def _gathered(fields: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Fields of so many bits, [..., fields, bytes], as bytes: the first field in the lowest bits."""
    shifts = np.arange(fields.shape[-2], dtype=np.uint8)[:, None] * np.uint8(width)
    found: NDArray[np.uint8] = np.bitwise_or.reduce(fields << shifts, axis=-2)
    return found


def _nestable(codec: Codec) -> Codec:
    if codec not in LEADING_BITS:
        raise InputError(
            f"codec {codec!r} has no leading bits to read; those that have: {', '.join(LEADING_BITS)}",
            fix="use --codec int8 or int4",
        )
    return codec


def _unsigned(encoded: Encoded) -> NDArray[np.uint8]:
    return (encoded.codes.astype(np.int16) + 128).astype(np.uint8)
