"""The nested codec: int8 rows cut into their leading and their other four bits, so that the leading bits can be read alone.

The code of a weight is taken as unsigned (128 + the int8 one): 16 * high + low. All high halves of a matrix lie together,
the low halves with what else belongs to their neuron. Both together are exactly the int8 row. Estimates from two or three
leading bits are there for study: they are read from the same four. Rows of int4 have four bits and are not cut.
This is the specification of ``csrc/halves.h``.
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

LEADING_BITS: dict[str, tuple[int, ...]] = {"int8": (2, 3, 4), "int4": (4,)}
"""Codecs whose leading bits can be read, and how many."""
STORED_BITS = 4
"""That are read, whatever number of them is used."""

_BLOCK = 16 * GROUP


def leading_bits(codec: Codec) -> tuple[int, ...]:
    """How many leading bits of `codec` can be asked for. Raises `InputError` where none can."""
    if codec not in LEADING_BITS:
        raise InputError(
            f"codec {codec!r} has no leading bits to read; those that have: {', '.join(LEADING_BITS)}",
            fix="use --codec int8 or int4",
        )
    return LEADING_BITS[codec]


def estimate(encoded: Encoded, bits: int) -> NDArray[np.float32]:
    """What the leading `bits` say of the rows, float32 [n, width]: the middle of the codes that they leave open.

    Four bits of int4 are all there are: `codecs.decode`.

    Raises:
        InputError: the codec has no leading bits, or not so many.
    """
    if bits not in leading_bits(encoded.codec):
        raise InputError(
            f"{bits} leading bits of {encoded.codec} cannot be read; {leading_bits(encoded.codec)} can"
        )
    if encoded.codec == "int4":
        return decode(encoded)
    left = 8 - bits
    codes = (_unsigned(encoded) >> left << left).astype(np.float32) + np.float32((2**left - 1) / 2 - 128)
    return decode(replace(encoded, codes=codes))


def halves(encoded: Encoded) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """High and low nibbles of int8 rows, [n, p] each."""
    codes = _unsigned(encoded)
    return codes >> np.uint8(4), codes & np.uint8(15)


def pack(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The bytes of rows of nibbles, [n, p / 2].

    Blocks of sixteen groups: chunk v of 64 bytes has weights 8 v to 8 v + 7 of each group; the four bytes of a group have
    the first four in their lower halves, in the order 0, 2, 1, 3, and the others likewise in their upper halves. Groups
    after the last block: 16 bytes each, the first sixteen weights in the lower halves.
    """
    n, padded = nibbles.shape
    blocks = padded // _BLOCK
    whole = nibbles[:, : blocks * _BLOCK].reshape(
        n, blocks, 16, 4, 2, 4
    )  # [n, block, group, chunk, half, weight]
    whole = whole.transpose(0, 1, 3, 4, 2, 5)[..., [0, 2, 1, 3]]  # [n, block, chunk, half, group, byte]
    tail = nibbles[:, blocks * _BLOCK :].reshape(n, -1, 2, GROUP // 2)  # [n, group, half, byte]
    lower, upper = whole[:, :, :, 0], whole[:, :, :, 1]
    packed = [lower | upper << np.uint8(4), tail[:, :, 0] | tail[:, :, 1] << np.uint8(4)]
    return np.concatenate([part.reshape(n, -1) for part in packed], axis=1)


def _unsigned(encoded: Encoded) -> NDArray[np.uint8]:
    return (encoded.codes.astype(np.int16) + 128).astype(np.uint8)
