"""Low-rank compensators in closed form: a linear map of the block's input that stands in for the skipped neurons.

Per layer, with y the block's own normed input [d] and r = sum over skipped neurons i of h_i down_i [d], it is the map of
rank k with the least squared error of ``r ~ bias + B^T A y`` (reduced-rank regression): the ridge solution
W = (Cov(y, y) + ridge)^-1 Cov(y, r), projected on the k leading directions of its predictions. Rank 0 is the mean of r.
Only sums over tokens are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.plan import Compensator, Pick
from dejavu.reference.selection import pick

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from dejavu.executor import Trace
    from dejavu.models.loading import OpenModel
    from dejavu.plan import NeuronSelector
    from dejavu.training.inputs import BlockInputs
    from dejavu.training.scores import Scores

    Array = NDArray[np.float32]

RIDGE = 1e-3
"""Added to the diagonal of the covariance, as a share of its mean."""


class Regression:
    """Sums of one layer: y and r over tokens.

    Args:
        d: their width.
    """

    def __init__(self, d: int) -> None:
        self._count = 0
        self._y, self._r = np.zeros(d), np.zeros(d)  # [d]
        self._yy, self._yr = np.zeros((d, d)), np.zeros((d, d))  # [d, d]

    def add(self, y: Array, r: Array) -> None:
        """Count tokens: y and r [t, d]."""
        self._count += len(y)
        self._y += y.sum(axis=0, dtype=np.float64)
        self._r += r.sum(axis=0, dtype=np.float64)
        self._yy += y.T @ y
        self._yr += y.T @ r

    def solve(self, rank: int) -> Compensator:
        """The best compensator of `rank` for what was added."""
        n = max(self._count, 1)
        y, r = self._y / n, self._r / n  # [d]
        d = len(y)
        if rank == 0:
            empty = np.zeros((0, d), np.float32)
            return Compensator(a=empty, b=empty.T, bias=r.astype(np.float32))
        yy, yr = self._yy / n - np.outer(y, y), self._yr / n - np.outer(y, r)
        ridge = RIDGE * np.trace(yy) / d + 1e-12
        w = np.linalg.solve(yy + ridge * np.eye(d), yr)  # [d, d]: r ~ y w
        _, directions = np.linalg.eigh(w.T @ yy @ w)  # ascending
        b = directions[:, ::-1][:, :rank].T  # [rank, d]
        a = b @ w.T  # [rank, d]
        return Compensator(
            a=a.astype(np.float32), b=b.T.astype(np.float32), bias=(r - (a @ y) @ b).astype(np.float32)
        )


def fit_compensators(
    opened: OpenModel,
    selectors: Sequence[NeuronSelector],
    scores: Scores,
    inputs: BlockInputs,
    traces: Iterable[Trace],
    rank: int,
) -> list[Compensator | None]:
    """Compensators for what `selectors` skip, one per layer; None where nothing is skipped.

    Args:
        opened: the model; down is read.
        selectors: calibrated or dense, of the neurons of each layer.
        scores: computes their scores.
        inputs: computes y.
        traces: of some text.
        rank: of the map.
    """
    d, count = opened.config.d_model, opened.config.n_layers
    layers = {i: s for i, s in enumerate(selectors) if isinstance(s, Pick)}
    down = {i: opened.weights.read(f"layers.{i}.down.weight").T for i in layers}  # [f, d]
    sums = {i: Regression(d) for i in layers}
    for trace in traces:
        for i, selector in layers.items():
            skipped = ~pick(scores.neurons(selector, trace, i), selector)  # [t, f]
            rest = (trace.hidden[i] * skipped) @ down[i]  # [t, d]
            sums[i].add(inputs(trace, i, "neurons"), rest)
    return [sums[i].solve(rank) if i in sums else None for i in range(count)]
