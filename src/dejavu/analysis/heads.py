"""How concentrated each head's attention is: even mixtures, heavy hitters, and the mean-shift view.

Deja Vu (section 3.2) reads a head as one step of mean-shift clustering: a token x_i moves towards
``sum_j s_ij x_j / sum_j s_ij`` with a kernel ``s_ij = exp(<q_i, k_j>)`` that is large for tokens that are near in the
head's own projection. A head whose kernel is flat moves every token towards the same mean, whatever the token: skipping it
changes little. A head with a peaked kernel (heavy hitters) gathers a token with its like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.analysis.sets import count_at
from dejavu.analysis.similarity import cosine
from dejavu.reference.selection import highest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.analysis.attention import Attention
    from dejavu.models.config import ModelConfig

FEWEST_KEYS = 16
"""Tokens that see fewer are left out: any attention over few keys is concentrated."""
_EVERY = 4
"""Every so many tokens are looked at."""
UNIFORM = 0.9
"""Entropy, as a share of the largest possible, from which a head counts as uniform."""
HEAVY = 0.5
"""Mean share of a token's heaviest key from which a head counts as a heavy hitter."""


class HeadConcentration:
    """Means over the tokens of a few pieces, per layer and head."""

    def __init__(self, config: ModelConfig) -> None:
        shape = (config.n_layers, config.n_heads)
        self._tokens = 0
        self._chosen_of = 0
        self._entropy, self._heaviest, self._first, self._gain, self._chosen = (
            np.zeros(shape, np.float64) for _ in range(5)
        )

    def add(self, layer: int, attention: Attention, head_norm: NDArray[np.float32]) -> None:
        """Take in one layer of one piece; `head_norm` [t, H]. Layer 0 comes first."""
        seen = (attention.shares > 0).any(axis=0)  # [t, t]: of a steep head the shares of far keys are zero
        keys = np.maximum(1, seen.sum(axis=-1))  # [t]
        rows = np.flatnonzero(keys >= FEWEST_KEYS)[::_EVERY]
        if layer == 0:
            self._tokens += len(rows)
            self._chosen_of += len(head_norm)
        chosen = highest(head_norm, count_at(0.5, head_norm.shape[1]))  # [t, H]
        self._chosen[layer] += chosen.sum(axis=0)
        if not len(rows):
            return
        shares = attention.shares[:, rows].astype(np.float64)  # [H, r, t]
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        self._entropy[layer] -= ((shares * logs).sum(axis=-1) / np.log(keys[rows])).sum(axis=-1)
        self._heaviest[layer] += shares.max(axis=-1).sum(axis=-1)
        self._first[layer] += shares[:, :, 0].sum(axis=-1)
        self._gain[layer] += _gathering(attention.normed, attention.shares[:, rows], rows)

    def result(self) -> dict[str, Any]:
        """Per layer and head [L][H], and how many heads are of which kind."""
        tokens = max(1, self._tokens)
        entropy, heaviest, first = self._entropy / tokens, self._heaviest / tokens, self._first / tokens
        chosen = self._chosen / max(1, self._chosen_of)
        uniform, heavy = entropy >= UNIFORM, heaviest >= HEAVY
        return {
            "tokens": self._tokens,
            "entropy": entropy.tolist(),
            "heaviest_key": heaviest.tolist(),
            "first_key": first.tolist(),
            "gathering": (self._gain / tokens).tolist(),
            "in_top_half": chosen.tolist(),
            "heads": int(entropy.size),
            "uniform": int(uniform.sum()),
            "heavy_hitters": int(heavy.sum()),
            "sinks": int((first >= HEAVY).sum()),
            "uniform_in_top_half": float(chosen[uniform].mean()) if uniform.any() else None,
            "heavy_in_top_half": float(chosen[heavy].mean()) if heavy.any() else None,
        }


def _gathering(
    normed: NDArray[np.float32], shares: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """How much nearer the attended mean of the other tokens is to a token than their plain mean is; sums, [H].

    Nearer in cosine. `shares` [H, r, t] belongs to the tokens `rows` [r]; `normed` [t, d]. The first token is left out:
    attention that has nothing to gather rests on it.
    """
    others = shares.copy()  # [H, r, t]
    others[:, :, 0] = 0
    others[:, np.arange(len(rows)), rows] = 0
    here = normed[rows]  # [r, d]
    attended = cosine(here, others @ normed)  # [H, r]
    plain = cosine(here, (others > 0).any(axis=0).astype(np.float32) @ normed)  # [r]
    return np.asarray((attended - plain).sum(axis=-1), np.float64)
