"""Quantiles of many float32 values, in memory that does not grow with their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BINS = 1 << 16


class Quantiles:
    """A histogram over the leading 16 bits of float32 values: bins are 2^-7 of their value wide.

    Within a bin values count as evenly spread.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)

    @property
    def count(self) -> int:
        """Values added."""
        return int(self._counts.sum())

    def add(self, values: NDArray[np.float32]) -> None:
        """Count `values` of any shape; they must not be NaN."""
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).ravel() >> np.uint32(16)
        # Flip so that the integers order as the floats do: all bits of negative numbers, the sign of the others.
        ordered = np.where(bits & 0x8000, bits ^ 0xFFFF, bits ^ 0x8000)
        self._counts += np.bincount(ordered, minlength=_BINS)

    def merge(self, other: Quantiles) -> None:
        """Count what `other` counted."""
        self._counts += other._counts

    def threshold(self, density: float) -> float:
        """The value that a share `density` of the values exceeds."""
        above = np.cumsum(self._counts[::-1])[::-1]  # [bins]: values in this bin or a higher one
        wanted = density * self.count
        index = max(int(np.searchsorted(-above, -wanted, side="right")) - 1, 0)  # the last bin with enough
        low, high = _edges(index)
        higher = int(above[index + 1]) if index + 1 < _BINS else 0
        share = (wanted - higher) / max(int(self._counts[index]), 1)  # of this bin's values, from its top
        return float(np.float32(high + (low - high) * min(max(share, 0.0), 1.0)))


def _edges(index: int) -> tuple[float, float]:
    """Smallest and largest value of a bin."""
    if index >= 0x8000:
        first, last = (index ^ 0x8000) << 16, ((index ^ 0x8000) << 16) | 0xFFFF
    else:
        first, last = ((index ^ 0xFFFF) << 16) | 0xFFFF, (index ^ 0xFFFF) << 16
    low, high = np.array([first, last], np.uint32).view(np.float32)
    return float(low), float(high)
