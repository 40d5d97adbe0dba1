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
    """Size of the intersection over size of the union, along the last axis."""
    return np.asarray((a & b).sum(axis=-1) / (a | b).sum(axis=-1), np.float64)


def chance_jaccard(density: float) -> float:
    """What two independent random sets of this density have on average, for many members."""
    return density / (2 - density)


def chance_union(density: float, batch: int) -> float:
    """Share that `batch` independent random sets of this density touch together."""
    return 1 - (1 - density) ** batch
