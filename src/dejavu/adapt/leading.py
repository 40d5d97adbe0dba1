"""What the leading bits of weights say: `dejavu.nested.estimate`, by the compiled core, for weights that keep changing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.codecs import GROUP
from dejavu.engine.core import load_core
from dejavu.engine.packing import encode_bundles
from dejavu.errors import InputError, NumericsError
from dejavu.nested import leading_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.codecs import Codec


def leading(codec: Codec, rows: NDArray[np.float32], bits: int, threads: int = 1) -> NDArray[np.float32]:
    """The middle of the weights that the leading `bits` of `rows` [n, d] leave open, float32 [n, d].

    Raises:
        InputError: the codec has no leading bits, or not so many.
        NumericsError: NaN, infinity, or values that the codec cannot hold.
    """
    n, d = rows.shape
    if bits not in leading_bits(codec):
        raise InputError(f"{bits} leading bits of {codec} cannot be read; {leading_bits(codec)} can")
    try:
        packed = encode_bundles(codec, rows[:, None], threads).reshape(n, -1)
    except ValueError as error:
        raise NumericsError(
            f"weights in {codec}: {error}", fix="adapt with a smaller --learning-rate"
        ) from error
    ends = np.empty((2, n, 1, d), np.float32)  # the smallest and the largest weights with these leading bits
    codes = packed[:, : -(-d // GROUP) * GROUP] if codec == "int8" else packed[:, :0]
    for end, unknown in zip(ends, (np.bitwise_and, np.bitwise_or), strict=True):
        below = np.uint8((1 << (8 - bits)) - 1)
        codes[:] = unknown(codes, ~below if unknown is np.bitwise_and else below)
        load_core().unpack(codec, packed.reshape(-1), d, 1, end)
    middle: NDArray[np.float32] = (ends[0, :, 0] + ends[1, :, 0]) * np.float32(0.5)
    return middle
