"""`Validation`: what masks cost on held-out text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dejavu.adapt.masks import MaskPass
from dejavu.adapt.model import Batch
from dejavu.adapt.student import Losses

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dejavu.adapt.masks import PlanMasks
    from dejavu.adapt.student import Student
    from dejavu.training.stream import Piece

_PART = 512  # tokens that are measured at a time


@dataclass(frozen=True)
class Measured:
    """Masked against dense on held-out text; see `dejavu.adapt.distill.Point`."""

    ratio: float
    divergence: float
    densities: tuple[float, ...]
    recalls: tuple[float, ...]


class Validation:
    """Held-out text, with what the dense original says of it."""

    def __init__(self, student: Student, pieces: Sequence[Piece]) -> None:
        self._student = student
        self._batches = list(batches_of(pieces))
        self._targets = student.workers.map(student.run, self._batches, [None] * len(self._batches))

    def measure(self, masks: PlanMasks) -> Measured:
        """Run `masks` over it."""
        student, passes = self._student, [MaskPass(masks, recall=True) for _ in self._batches]
        losses = student.workers.map(student.measure, self._batches, self._targets, passes)
        total = sum(losses, Losses(0, 0.0, 0.0, 0.0))
        ratio = math.exp(min((total.masked - total.dense) / total.tokens, 700.0))
        tokens = [len(batch.tokens) for batch in self._batches]
        densities = mean([p.densities for p in passes], tokens)
        recalls = mean([p.recalls for p in passes], tokens)
        return Measured(ratio, total.divergence / total.tokens, densities, recalls)


def mean(rows: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> tuple[float, ...]:
    """Over rows, of each column."""
    return tuple(np.average(rows, axis=0, weights=weights).tolist())


def batches_of(pieces: Sequence[Piece], tokens: int = _PART) -> Iterator[Batch]:
    """Pieces as batches of at least `tokens` tokens, but for the last."""
    found: list[Piece] = []
    for piece in pieces:
        found.append(piece)
        if sum(map(len, found)) >= tokens:
            yield Batch.of(found)
            found = []
    if found:
        yield Batch.of(found)
