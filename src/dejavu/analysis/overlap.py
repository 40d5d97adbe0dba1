"""Do tokens share their selected sets? Neighbours, a fixed set, and batches of unrelated tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.analysis.sets import chance_jaccard, chance_union, count_at, jaccard, share
from dejavu.reference.selection import highest

if TYPE_CHECKING:
    from numpy.typing import NDArray

DENSITIES = (0.1, 0.2, 0.5)
BATCHES = (2, 4, 8, 16, 32)
_POOL = 256  # tokens kept for batches
_SHUFFLES = 4


class Overlap:
    """Sets of the neurons (or heads) with the largest scores, over pieces of text. What scores zero is in no set.

    Args:
        usage: mean score of each on other text, [L, n]; a token's fixed set is its largest, as many as the token's own has.
        pieces: number of pieces that will be added.
        seed: of the draw of unrelated tokens.
    """

    def __init__(self, usage: NDArray[np.float64], pieces: int, seed: int) -> None:
        self._layers, self._n = usage.shape
        self._rng = np.random.default_rng([seed, 1])
        self._per_piece = -(-_POOL // max(1, pieces))
        shape = (len(DENSITIES), self._layers)
        self._rank = np.argsort(np.argsort(-usage, axis=1, kind="stable"), axis=1)  # [L, n]
        self._neighbours, self._pairs = np.zeros(shape, np.float64), 0
        self._against_static, self._covered, self._tokens = np.zeros(shape), np.zeros(shape), 0
        self._taken = np.zeros(shape)
        self._pool: list[list[NDArray[np.uint8]]] = [[] for _ in range(len(DENSITIES) * self._layers)]

    def add(self, scores: NDArray[np.float32]) -> None:
        """Take in one piece: scores [L, t, n]."""
        t = scores.shape[1]
        self._tokens += t
        self._pairs += t - 1
        drawn = self._rng.choice(t, min(t, self._per_piece), replace=False)
        for layer in range(self._layers):
            for i, density in enumerate(DENSITIES):
                mask = highest(scores[layer], count_at(density, self._n)) & (scores[layer] > 0)  # [t, n]
                self._taken[i, layer] += mask.sum()
                static = self._rank[layer] < mask.sum(axis=1, keepdims=True)  # [t, n]
                self._neighbours[i, layer] += jaccard(mask[1:], mask[:-1]).sum()
                self._against_static[i, layer] += jaccard(mask, static).sum()
                self._covered[i, layer] += share((mask & static).sum(axis=1), mask.sum(axis=1)).sum()
                self._pool[i * self._layers + layer].append(np.packbits(mask[drawn], axis=1))

    def result(self) -> list[dict[str, Any]]:
        """One entry per density."""
        out = []
        for i in range(len(DENSITIES)):
            densities = self._taken[i] / (self._tokens * self._n)  # [L]
            neighbours = self._neighbours[i] / self._pairs
            static, covered = self._against_static[i] / self._tokens, self._covered[i] / self._tokens
            out.append(
                {
                    "density": float(densities.mean()),
                    "chance_jaccard": float(chance_jaccard(densities).mean()),
                    "neighbours_jaccard": neighbours.tolist(),
                    "neighbours_jaccard_mean": float(neighbours.mean()),
                    "static_jaccard": static.tolist(),
                    "static_jaccard_mean": float(static.mean()),
                    "static_coverage": covered.tolist(),
                    "static_coverage_mean": float(covered.mean()),
                    "unions": self._unions(i, densities),
                }
            )
        return out

    def _unions(self, i: int, densities: NDArray[np.float64]) -> list[dict[str, Any]]:
        """Share of the layer that batches of unrelated tokens touch together."""
        pools = [np.concatenate(self._pool[i * self._layers + layer]) for layer in range(self._layers)]
        tokens = len(pools[0])
        out = []
        for batch in BATCHES:
            if batch > tokens:
                break
            sums, groups = np.zeros(self._layers), 0
            for _ in range(_SHUFFLES):
                order = self._rng.permutation(tokens)[: tokens // batch * batch].reshape(-1, batch)
                groups += len(order)
                for layer, pool in enumerate(pools):
                    union = np.bitwise_or.reduce(pool[order], axis=1)  # [groups, n/8]
                    sums[layer] += np.unpackbits(union, axis=1)[:, : self._n].sum() / self._n
            share = sums / groups
            out.append(
                {
                    "batch": batch,
                    "chance": float(chance_union(densities, batch).mean()),
                    "share": share.tolist(),
                    "mean": float(share.mean()),
                }
            )
        return out
