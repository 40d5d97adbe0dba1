"""Selected sets, as masks: their sizes, and how far they overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.plan import Pick

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]


def count_at(density: float, n: int) -> int:
    """How many of `n` a density takes: at least one."""
    return Pick(density=density).count(n)


def jaccard(a: Mask, b: Mask) -> NDArray[np.float64]:
    """Size of the intersection over size of the union, along the last axis; 1 where both are empty."""
    return share((a & b).sum(axis=-1), (a | b).sum(axis=-1))


def share(part: NDArray[np.int_], whole: NDArray[np.int_]) -> NDArray[np.float64]:
    """Of counts; 1 where there is nothing."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 1.0)


def chance_jaccard(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """What two independent random sets of this density have on average, for many members."""
    return density / (2 - density)


def chance_union(density: NDArray[np.float64], batch: int) -> NDArray[np.float64]:
    """Share that `batch` independent random sets of this density touch together."""
    return 1 - (1 - density) ** batch
