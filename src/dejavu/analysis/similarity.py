"""How slowly the residual stream changes from layer to layer: what look-ahead lives on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.executor import Trace
    from dejavu.models.config import ModelConfig

DISTANCES = (1, 2, 4)


class Similarity:
    """Mean cosine between what enters the same kind of block of layers l - n and l."""

    def __init__(self, config: ModelConfig) -> None:
        self._tokens = 0
        self._distances = [n for n in DISTANCES if n < config.n_layers]
        self._sums = {
            (block, n): np.zeros(config.n_layers - n, np.float64)
            for block in ("attention", "mlp")
            for n in self._distances
        }

    def add(self, trace: Trace) -> None:
        """Take in one piece."""
        self._tokens += trace.attn_input.shape[1]
        for block, stream in (("attention", trace.attn_input), ("mlp", trace.mlp_input)):  # [L, t, d]
            for n in self._distances:
                for layer in range(n, len(stream)):
                    self._sums[block, n][layer - n] += cosine(stream[layer - n], stream[layer]).sum()

    def result(self) -> dict[str, Any]:
        """Per block and distance: the cosine for each layer l from the distance on, and the mean."""
        return {
            block: [
                {
                    "distance": n,
                    "cosine": (sums / self._tokens).tolist(),
                    "mean": float(sums.mean() / self._tokens),
                }
                for (kind, n), sums in self._sums.items()
                if kind == block
            ]
            for block in ("attention", "mlp")
        }


def cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine along the last axis; 0 where a vector is zero."""
    product = np.einsum("...d,...d->...", a, b, dtype=np.float64)
    size = np.linalg.norm(a, axis=-1).astype(np.float64) * np.linalg.norm(b, axis=-1)
    return np.asarray(np.divide(product, size, out=np.zeros_like(product), where=size > 0), np.float64)
