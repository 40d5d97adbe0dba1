"""`SizeLearner`: low-rank predictors learn how large what each neuron or head gives will be.

What a mistake costs is what was skipped, and a few neurons give a thousand times more than the rest. A predictor of labels
counts both the same: it finds more of the active neurons, and loses more of the output. So this one regresses

    sqrt(size),  size = abs(h) of a neuron, the output norm of a head,

on the normed input y, linearly, over all tokens at once: reduced-rank regression (Izenman, 1975) with a ridge, in closed
form. With C = L L^T the covariance of y plus the ridge, and B that of y with the targets [d, n], the best map of rank r is

    b a = (L^-T U U^T L^-1 B)^T,   U: the r leading left singular vectors of L^-1 B.

The root, because squared errors of sizes themselves would be those of the few. Nothing depends on a learning rate, a seed
or the order of the text. Per layer (d + 1) (d + 1 + n) sums are held, float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.plan import LowRank
from dejavu.training.missing import import_torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dejavu.training.examples import Examples
    from dejavu.training.inputs import Block
    from dejavu.training.learner import LowRankOptions
    from dejavu.training.stream import Piece

    Array = NDArray[np.float32]

RIDGE = 0.01
"""Added to the variance of each input dimension, as a share of their mean."""


class SizeLearner:
    """See `dejavu.training.learner.Learner`. Sums over tokens, and what follows from them."""

    def __init__(self, examples: Examples, options: LowRankOptions, arrays: dict[str, Array] | None) -> None:
        torch = self._torch = import_torch()
        self._examples = examples
        self._options = options
        c = examples.config
        outputs: dict[Block, int] = {"neurons": c.base_neurons, "heads": c.n_heads}
        self._sums: dict[tuple[Block, int], tuple[Any, Any, Any]] = {}
        """Of products of [y, 1] with itself [d + 1, d + 1] and with the targets [d + 1, n], of squared targets [n]."""
        for target in options.targets:
            n, d = outputs[target.block], c.d_model + 1
            for layer in range(c.n_layers):
                self._sums[target.block, layer] = torch.zeros(d, d), torch.zeros(d, n), torch.zeros(n)
        self.steps = 0
        self._unexplained = (1.0,) * len(self._sums)
        if arrays is not None:
            for name, total in self._named():
                total.copy_(torch.from_numpy(arrays[name]).view(total.shape))
            self.steps = int(arrays["steps"][0])

    def step(self, batch: Sequence[Piece], done: float) -> tuple[float, ...]:
        """See `Learner.step`. The loss is the share of the variance that `predictors` left unexplained the last time."""
        torch = self._torch
        for block, layer, y, sizes in self._examples.of(batch):
            x = torch.from_numpy(y * self._examples.scales[block][layer])  # [t, d]
            x = torch.cat([x, torch.ones(len(x), 1)], dim=1)  # [t, d + 1]
            target = torch.from_numpy(sizes).sqrt()  # [t, n]
            if not math.isfinite(float(x.sum() + target.sum())):
                return (math.nan,)
            inputs, products, squares = self._sums[block, layer]
            inputs.addmm_(x.T, x)
            products.addmm_(x.T, target)
            squares += target.square().sum(dim=0)
        self.steps += 1
        return self._unexplained

    def predictors(self) -> dict[Block, list[LowRank]]:
        """See `Learner.predictors`: the inputs' scales are part of a."""
        found: dict[Block, list[LowRank]] = {}
        unexplained = []
        for target in self._options.targets:
            for layer, scale in enumerate(self._examples.scales[target.block]):
                a, b, bias, left = self._solve(*self._sums[target.block, layer], target.rank)
                unexplained.append(left)
                predictor = LowRank(
                    a=a * scale, b=b, bias=bias, lookahead=self._options.lookahead, density=target.density
                )
                found.setdefault(target.block, []).append(predictor)
        self._unexplained = tuple(unexplained)
        return found

    def _solve(self, xx: Any, xt: Any, tt: Any, rank: int) -> tuple[Array, Array, Array, float]:
        """The map a [r, d], b [n, r], bias [n] of some sums, and the share of the variance that it leaves."""
        linalg = self._torch.linalg
        xx, xt, tt = xx.double(), xt.double(), tt.double()
        count = xx[-1, -1].clamp_min(1)
        mean, mean_target = xx[-1, :-1] / count, xt[-1] / count  # [d], [n]
        within = xx[:-1, :-1] / count - mean.outer(mean)  # [d, d]
        within += RIDGE * within.diagonal().mean().clamp_min(1e-12) * self._torch.eye(len(mean)).double()
        lower = linalg.cholesky(within)  # [d, d]
        between = linalg.solve_triangular(
            lower, xt[:-1] / count - mean.outer(mean_target), upper=False
        )  # [d, n]
        values, vectors = linalg.eigh(between @ between.T)  # ascending
        rank = min(rank, *between.shape)  # a few heads need no more
        leading = vectors[:, -rank:].flip(1)  # [d, r]
        a = linalg.solve_triangular(lower.T, leading, upper=True).T  # [r, d]
        b = between.T @ leading  # [n, r]
        sizes = b.norm(dim=0).clamp_min(1e-12)  # [r]
        a, b = a * sizes[:, None], b / sizes  # columns of b are rounded together: they are of one size
        bias = mean_target - b @ (a @ mean)  # [n]
        variance = float((tt / count - mean_target.square()).sum().clamp_min(1e-12))
        left = max(1 - float(values[-rank:].sum()) / variance, 0.0)
        arrays = (p.float().contiguous().numpy() for p in (a, b, bias))
        return (*arrays, left)

    def arrays(self) -> dict[str, Array]:
        """See `Learner.arrays`."""
        found = {name: total.numpy() for name, total in self._named()}
        return found | {"steps": np.array([self.steps], np.float32)}

    def _named(self) -> list[tuple[str, Any]]:
        return [
            (f"layers.{key[1]}.{key[0]}.{name}", total)
            for key, totals in self._sums.items()
            for name, total in zip(("inputs", "products", "targets"), totals, strict=True)
        ]
