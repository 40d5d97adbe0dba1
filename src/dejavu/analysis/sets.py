"""Selected sets: which of n neurons or heads score highest, as masks."""

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


def top_mask(scores: NDArray[np.floating], count: int) -> Mask:
    """True for the `count` largest of each row: scores [..., n] -> [..., n]. Among equals any may win."""
    mask = np.zeros(scores.shape, np.bool_)
    if count >= scores.shape[-1]:
        return ~mask
    chosen = np.argpartition(scores, -count, axis=-1)[..., -count:]  # [..., count]
    np.put_along_axis(mask, chosen, True, axis=-1)
    return mask


def jaccard(a: Mask, b: Mask) -> NDArray[np.float64]:
    """Size of the intersection over size of the union, along the last axis."""
    return np.asarray((a & b).sum(axis=-1) / (a | b).sum(axis=-1), np.float64)


def chance_jaccard(density: float) -> float:
    """What two independent random sets of this density have on average, for many members."""
    return density / (2 - density)


def chance_union(density: float, batch: int) -> float:
    """Share that `batch` independent random sets of this density touch together."""
    return 1 - (1 - density) ** batch
