"""Which neurons and heads a token touches: scores [t, n], and the picks [t, n] (bool) that follow from them.

Shapes: t tokens, d = d_model, n neurons or heads, r the rank of a map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.reference.ops import activate, gated

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.models.config import ModelConfig
    from dejavu.plan import LowRank, Pick, Products, Random

    Array = NDArray[np.float32]
    Mask = NDArray[np.bool_]

HEADS_OF_LAYER = 32768
"""Added to the layer's number where random scores are for heads."""


def pick(scores: Array, rule: Pick) -> Mask:
    """Scores [t, n] -> the chosen [t, n]; see `dejavu.plan.Pick`."""
    if rule.threshold is not None:
        return np.asarray(scores > np.float32(rule.threshold))  # [t, n]
    return highest(scores, rule.count(scores.shape[1]))


def highest(scores: NDArray[np.floating], k: int) -> Mask:
    """Where the k (at least one) highest of each row of scores [..., n] are; of equal ones the first."""
    n = scores.shape[-1]
    if k >= n:
        return np.ones(scores.shape, np.bool_)
    kth = np.partition(scores, n - k, axis=-1)[..., n - k, None]  # [..., 1]; sorting takes five times as long
    above, equal = scores > kth, scores == kth  # [..., n]
    left = k - np.count_nonzero(above, axis=-1, keepdims=True)  # [..., 1]
    return np.asarray(above | (equal & (np.cumsum(equal, axis=-1) <= left)))


def always(indices: NDArray[np.int32], t: int, n: int) -> Mask:
    """The same ones for each of t tokens, [t, n]."""
    chosen = np.zeros((t, n), np.bool_)
    chosen[:, indices] = True
    return chosen


def random_scores(selector: Random, layer: int, positions: NDArray[np.int64], n: int) -> Array:
    """A hash per position and neuron or head, in [0, 1): positions [t] -> [t, n].

    ``splitmix64(seed ^ layer << 48 ^ position << 24 ^ index)`` in uint64 that wraps around; its 24 highest bits / 2^24.
    """
    key = np.uint64(selector.seed ^ (layer << 48))
    where = positions.astype(np.uint64)[:, None] << np.uint64(24)  # [t, 1]
    return _top24(splitmix64(key ^ where ^ np.arange(n, dtype=np.uint64)))  # [t, n]


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Steele, Lea and Flood's generator (2014): its state advanced once and mixed."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def _top24(bits: NDArray[np.uint64]) -> Array:
    return np.asarray((bits >> np.uint64(40)) / np.float64(1 << 24), np.float32)  # exact


def low_rank_scores(selector: LowRank, y: Array) -> Array:
    """What the predictor says of y [t, d]: [t, n]."""
    hidden = y @ selector.a.T  # [t, r]
    if selector.hidden == "relu":
        hidden = np.maximum(hidden, 0)  # [t, r]
    return np.asarray(hidden @ selector.b.T + selector.bias, np.float32)  # [t, n]


def products_scores(selector: Products, y: Array, config: ModelConfig) -> Array:
    """The mean square of what each neuron gives, as far as y [t, d] tells: [t, n]. See `dejavu.plan.Products`."""
    kind, threshold = config.activation, config.activation_threshold
    z = np.asarray(y @ selector.a.T @ selector.b.T + selector.bias, np.float32)  # [t, 2n], ungated [t, n]
    above, below = z + selector.spread, z - selector.spread
    n = z.shape[1] // 2 if config.gated else z.shape[1]
    first = [activate(x[:, :n], kind, threshold) for x in (above, below)]  # [t, n] each
    scores = (first[0] ** 2 + first[1] ** 2) / 2
    if config.gated:
        second = [gated(np.ones_like(x[:, n:]), x[:, n:], kind) for x in (above, below)]
        scores = scores * ((second[0] ** 2 + second[1] ** 2) / 2)
    return np.asarray(scores, np.float32)


def sketch_scores(gate: Array | None, up: Array, config: ModelConfig) -> Array:
    """From the estimated products g' and u' [t, n] (gate None: ungated) -> [t, n]."""
    kind, threshold = config.activation, config.activation_threshold
    if gate is not None:
        return np.asarray(np.abs(gated(activate(gate, kind, threshold), up, kind)))  # [t, n]
    if config.exact_zeros:
        return np.asarray(up - np.float32(threshold))  # [t, n]; the sign says who is active
    return np.asarray(np.abs(activate(up, kind)))  # [t, n]


def head_norms(mixed: Array) -> Array:
    """L2 norm of each head's mixed values: [t, H, e] -> [t, H]."""
    return np.asarray(np.sqrt((mixed * mixed).sum(axis=-1)), np.float32)
