"""What the leading bits of weights say: `dejavu.nested.estimate`, by the compiled core, for weights that keep changing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.engine.core import chosen_isa, load_core
from dejavu.engine.layout import Planed
from dejavu.engine.packing import encode_bundles
from dejavu.errors import NumericsError
from dejavu.nested import widths

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.codecs import Codec


def leading(codec: Codec, rows: NDArray[np.float32], bits: int, threads: int = 1) -> NDArray[np.float32]:
    """The middle of the weights that the leading `bits` of `rows` [n, d] leave open, float32 [n, d].

    Raises:
        InputError: the codec has no bit planes.
        NumericsError: NaN, infinity, or values that the codec cannot hold.
    """
    core, (n, d) = load_core(), rows.shape
    planed = Planed("", codec, n, 1, d, None)
    kept = np.cumsum(widths(codec)).tolist().index(bits) + 1  # planes
    try:
        packed = encode_bundles(codec, rows[:, None], threads)
    except ValueError as error:
        raise NumericsError(
            f"weights in {codec}: {error}", fix="adapt with a smaller --learning-rate"
        ) from error
    section = np.empty(planed.nbytes, np.uint8)
    core.split_planes(codec, packed, d, 1, 1, section, None, threads)
    ends = []
    for fill in (0x00, 0xFF):  # the smallest and the largest weight with these leading bits
        for start, size in planed.parts()[kept:-1]:
            section[start : start + size * n] = fill
        out = np.empty((n, 1, d), np.float32)
        core.planes_decode(chosen_isa(), codec, section, None, out)
        ends.append(out[:, 0])
    middle: NDArray[np.float32] = (ends[0] + ends[1]) * np.float32(0.5)
    return middle
