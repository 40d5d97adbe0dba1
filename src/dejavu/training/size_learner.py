"""`SizeLearner`: low-rank predictors learn how large what each neuron or head gives will be.

What a mistake costs is what was skipped, and a few neurons give a thousand times more than the rest. A predictor of labels
counts both the same: it finds more of the active neurons, and loses more of the output.

A neuron's size follows from its products W y, of which the best estimate by r numbers is known in closed form:
reduced-rank regression (Izenman, 1975) with a ridge. x is what the predictor reads, y what enters the MLP (without
look-ahead the same), C = L L^T the covariance of x plus the ridge, B that of x with the targets T = W y [d, n]. The best
map of rank r is

    b a = (L^-T U U^T L^-1 B)^T,   U: the r leading left singular vectors of L^-1 B,

and what it leaves of the variance of each product is the `spread` of a `Products` selector. Only covariances of x and y
are learned from text, so that little of it is enough.

The sizes of heads are no products: there T is the root of their output norms, and the map a `LowRank` selector.

Nothing depends on a learning rate, a seed or the order of the text. Per layer (d + 1)^2 sums are held, float32; with
look-ahead (2 d + 1)^2.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.plan import LowRank, Products

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dejavu.models.weights import Weights
    from dejavu.training.examples import Examples, Target
    from dejavu.training.inputs import Block
    from dejavu.training.learner import LowRankOptions, Predictor
    from dejavu.training.stream import Piece

    Array = NDArray[np.float32]

RIDGE = 0.001
"""Added to the variance of each input dimension, as a share of it."""


class SizeLearner:
    """See `dejavu.training.learner.Learner`. Sums over tokens, and what follows from them."""

    def __init__(
        self,
        examples: Examples,
        options: LowRankOptions,
        weights: Weights,
        arrays: dict[str, Array] | None,
    ) -> None:
        self._examples = examples
        self._options = options
        self._weights = weights
        self._sums: dict[tuple[Block, int], Array] = {}
        """Of products of v = [x, the target, 1] with itself; without a target where that is x."""
        for target in options.targets:
            for layer in range(examples.config.n_layers):
                width = examples.config.d_model + self._targets(target.block, layer) + 1
                self._sums[target.block, layer] = np.zeros((width, width), np.float32)
        self.steps = 0
        self._unexplained = (1.0,) * len(self._sums)
        if arrays is not None:
            for name, total in self._named():
                total[:] = arrays[name].reshape(total.shape)
            self.steps = int(arrays["steps"][0])

    def step(self, batch: Sequence[Piece], done: float) -> tuple[float, ...]:
        """See `Learner.step`. The loss is the share of the variance that `predictors` left unexplained the last time."""
        for block, layer, x, target in self._examples.inputs_of(batch):
            beside = [target] if self._targets(block, layer) else []  # [t, d]; of heads [t, H]
            v = np.concatenate([x, *beside, np.ones((len(x), 1), np.float32)], axis=1)
            if not math.isfinite(float(v.sum(dtype=np.float64))):
                return (math.nan,)
            self._sums[block, layer] += v.T @ v
        self.steps += 1
        return self._unexplained

    def predictors(self) -> dict[Block, list[Predictor]]:
        """See `Learner.predictors`."""
        found: dict[Block, list[Predictor]] = {}
        unexplained = []
        for target in self._options.targets:
            for layer in range(self._examples.config.n_layers):
                predictor, left = self._solve(target, layer)
                unexplained.append(left)
                found.setdefault(target.block, []).append(predictor)
        self._unexplained = tuple(unexplained)
        return found

    def _targets(self, block: Block, layer: int) -> int:
        """How many values of a target lie in v beside x."""
        config = self._examples.config
        if block == "heads":
            return config.n_heads
        return config.d_model if min(self._options.lookahead, layer) else 0

    def _solve(self, target: Target, layer: int) -> tuple[Predictor, float]:
        """The predictor of a layer, and the share of the variance that it leaves."""
        d = self._examples.config.d_model
        sums = self._sums[target.block, layer].astype(np.float64)
        count = max(sums[-1, -1], 1.0)
        mean = sums[-1, :-1] / count
        covariance = sums[:-1, :-1] / count - np.outer(mean, mean)
        within, mean_x = covariance[:d, :d], mean[:d]
        # Of x with the target, and of the target with itself; without look-ahead all three are the same.
        own = slice(d, None) if self._targets(target.block, layer) else slice(0, d)
        between, target_covariance, target_mean = covariance[:d, own], covariance[own, own], mean[own]
        rows, shift = self._map(target.block, layer)  # [n, m], [n]
        variance = within.diagonal()
        ridge = np.diag(RIDGE * variance + 1e-6 * max(variance.mean(), 1e-12))
        lower = np.linalg.cholesky(within + ridge)  # [d, d]
        whitened = np.linalg.solve(lower, between) @ rows.T  # [d, n]
        rank = min(target.rank, *whitened.shape)  # a few heads need no more
        leading = np.linalg.eigh(whitened @ whitened.T)[1][:, : -rank - 1 : -1]  # [d, r]
        a, b = np.linalg.solve(lower.T, leading).T, whitened.T @ leading  # [r, d], [n, r]
        sizes = np.maximum(np.linalg.norm(b, axis=0), 1e-12)  # [r]
        a, b = a * sizes[:, None], b / sizes  # columns of b are rounded together: they are of one size
        options: dict[str, Any] = {"lookahead": self._options.lookahead, "density": target.density}
        rounded = LowRank(a=a, b=b, bias=np.zeros(len(b), np.float32), **options)
        whole = rounded.b.astype(np.float64) @ rounded.a  # [n, d]
        spread = ((rows @ target_covariance) * rows).sum(axis=1)  # [n], of each value its variance
        left = spread - 2 * ((rows @ between.T) * whole).sum(axis=1) + ((whole @ within) * whole).sum(axis=1)
        left = np.maximum(left, 0)
        bias = (rows @ target_mean + shift - whole @ mean_x).astype(np.float32)
        share = float(left.sum() / max(spread.sum(), 1e-12))
        if target.block == "heads":
            return dataclasses.replace(rounded, bias=bias), share
        spread = np.sqrt(left).astype(np.float32)
        return Products(a=rounded.a, b=rounded.b, bias=bias, spread=spread, **options), share

    def _map(self, block: Block, layer: int) -> tuple[Any, Any]:
        """What the values that are estimated are of the target: a matrix [n, m], and what is added [n]; float64."""
        config, read = self._examples.config, self._weights.read
        if block == "heads":
            return np.eye(config.n_heads), np.zeros(config.n_heads)
        rows, shifts = [], []
        for part in ("gate", "up") if config.gated else ("up",):
            rows.append(read(f"layers.{layer}.{part}.weight"))
            has_bias = part in config.biases
            shifts.append(read(f"layers.{layer}.{part}.bias") if has_bias else np.zeros(len(rows[-1])))
        return np.concatenate(rows).astype(np.float64), np.concatenate(shifts).astype(np.float64)

    def arrays(self) -> dict[str, Array]:
        """See `Learner.arrays`."""
        return dict(self._named()) | {"steps": np.array([self.steps], np.float32)}

    def _named(self) -> list[tuple[str, Array]]:
        return [(f"layers.{layer}.{block}", total) for (block, layer), total in self._sums.items()]
