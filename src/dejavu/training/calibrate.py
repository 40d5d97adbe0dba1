"""Absolute thresholds per layer, such that a selector's mean density hits a target.

One threshold for all tokens lets hard tokens take more neurons and easy ones fewer, which beats the same number for
every token.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dejavu.plan import Dense, LowRank, Oracle, Products, Sketch, Threshold
from dejavu.training.quantiles import Quantiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dejavu.executor import Trace
    from dejavu.training.inputs import Block
    from dejavu.training.scores import Scores

Scored = LowRank | Oracle | Products | Sketch | Threshold
"""Selectors that are calibrated."""

DENSE_FROM = 0.995
"""A target of this or more is dense."""


@dataclass(frozen=True)
class Family:
    """One selector per layer, alike but for their thresholds and arrays; what they pick now does not matter."""

    name: str
    block: Block
    selectors: tuple[Scored, ...]


class Calibration:
    """The scores of a family over some text."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._scores = [Quantiles() for _ in family.selectors]

    def add(self, scores: Scores, trace: Trace) -> None:
        """Count the scores of one trace."""
        compute = scores.neurons if self.family.block == "neurons" else scores.heads
        for layer, selector in enumerate(self.family.selectors):
            self._scores[layer].add(compute(selector, trace, layer))  # type: ignore[arg-type]

    def selector(self, layer: int, density: float) -> Scored | Dense:
        """The family's selector of `layer` with the threshold that gives the mean density `density`."""
        if density >= DENSE_FROM:
            return Dense()
        threshold = self.threshold(layer, density)
        return dataclasses.replace(self.family.selectors[layer], density=None, threshold=threshold)

    def threshold(self, layer: int, density: float) -> float:
        """What a share `density` of the scores of `layer` exceeds."""
        return self._scores[layer].threshold(density)


def calibrate(families: Sequence[Family], scores: Scores, traces: Iterable[Trace]) -> list[Calibration]:
    """Run `traces` once for all `families`."""
    calibrations = [Calibration(family) for family in families]
    for trace in traces:
        for calibration in calibrations:
            calibration.add(scores, trace)
    return calibrations
