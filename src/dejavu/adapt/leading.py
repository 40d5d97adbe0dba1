"""What the leading bits of weights say: `dejavu.nested.estimate`, by the compiled core, for weights that keep changing.

`Held` is a weight that the student uses as its leading bits say. Its gradient is taken as that of the weight itself
(straight through: Bengio et al. 2013).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dejavu.codecs import GROUP
from dejavu.engine.core import load_core
from dejavu.engine.packing import encode_bundles
from dejavu.errors import NumericsError
from dejavu.nested import check_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from dejavu.codecs import Codec


def leading(codec: Codec, rows: NDArray[np.float32], bits: int, threads: int = 1) -> NDArray[np.float32]:
    """The middle of the weights that the leading `bits` of `rows` [n, d] leave open, float32 [n, d].

    Raises:
        InputError: the codec has no leading bits, or not so many.
        NumericsError: NaN, infinity, or values that the codec cannot hold.
    """
    n, d = rows.shape
    check_bits(codec, bits)
    packed = _packed(codec, rows, threads)
    if codec == "int8":
        middle = 1 << (7 - bits)  # of what is left open; the sign does not change these bits
        codes = packed[:, : _groups(d) * GROUP]
        codes[:] = (codes & np.uint8(256 - 2 * middle)) | np.uint8(middle)
    found = np.empty((n, 1, d), np.float32)
    load_core().unpack(codec, packed.reshape(-1), d, 1, found)
    return found[:, 0]


class Held:
    """A weight that is used as its leading bits say.

    The scales are those of the time of `refresh`; the codes always follow the weight.

    Args:
        codec: in deployment.
        bits: leading ones.
        master: the weight [n, d], float32.
        used: its copy, in which the values go.
        turned: the transpose of the copy.
    """

    def __init__(self, codec: Codec, bits: int, master: Tensor, used: Tensor, turned: Tensor) -> None:
        check_bits(codec, bits)
        self._codec = codec
        self._bits = bits
        self._master, self._used, self._turned = master, used, turned
        # Codes of int8 are rounded to the nearest, and then cut behind their leading bits.
        self._half = 0.5 + (2.0 ** (bits - 9) if codec == "int8" else 0.0)
        self._step = self._least = torch.empty(0)  # of a code, and the value of code 0: [n, groups, 1]
        self.refresh()

    @torch.no_grad()
    def refresh(self, threads: int = 1) -> None:
        """Find the scales anew, and the values by them.

        Raises:
            NumericsError: NaN, infinity, or values that the codec cannot hold.
        """
        d = self._master.shape[1]
        packed = _packed(self._codec, self._master.numpy(), threads)
        halves = packed[:, _groups(d) * GROUP if self._codec == "int8" else _groups(d) * GROUP // 2 :]
        found = (
            torch.from_numpy(halves.copy()).view(torch.float16).float()
        )  # of a row: scales (int4: and minima)
        scale = found[:, : _groups(d), None]
        if self._codec == "int8":
            left = 8 - self._bits
            self._step, self._least = scale * 2.0**left, scale * (2.0 ** (left - 1) - 128)
        else:
            self._step, self._least = scale, found[:, _groups(d) : 2 * _groups(d), None]
        self.publish()
        self._turned.copy_(self._used.T)

    @torch.no_grad()
    def publish(self) -> None:
        """Write the values of now into the copy."""
        n, d = self._master.shape
        step, padding = self._step, _groups(d) * GROUP - d
        rows = torch.nn.functional.pad(self._master, (0, padding)) if padding else self._master
        codes = (rows.view(n, -1, GROUP) - self._least).div_(step.clamp_min(1e-30)).add_(self._half)
        codes.floor_().clamp_(0, 2**self._bits - 1)
        self._used.copy_(codes.mul_(step).add_(self._least).view(n, -1)[:, :d])


def _packed(codec: Codec, rows: NDArray[np.float32], threads: int) -> NDArray[np.uint8]:
    try:
        return encode_bundles(codec, rows[:, None], threads).reshape(len(rows), -1)
    except ValueError as error:
        raise NumericsError(
            f"weights in {codec}: {error}", fix="adapt with a smaller --learning-rate"
        ) from error


def _groups(width: int) -> int:
    return -(-width // GROUP)
