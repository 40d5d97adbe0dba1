"""How much each neuron and head is used on the whole: for static selections, and exact zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.executor import Trace
    from dejavu.models.config import ModelConfig


class Usage:
    """Mean scores over all tokens seen."""

    def __init__(self, config: ModelConfig) -> None:
        self._tokens = 0
        self._neurons = np.zeros((config.n_layers, config.base_neurons), np.float64)
        self._heads = np.zeros((config.n_layers, config.n_heads), np.float64)

    def add(self, trace: Trace) -> None:
        """Take in one piece."""
        self._tokens += trace.hidden.shape[1]
        for layer, hidden in enumerate(trace.hidden):
            self._neurons[layer] += np.abs(hidden).sum(axis=0, dtype=np.float64)
        self._heads += trace.head_norm.sum(axis=1, dtype=np.float64)

    @property
    def neurons(self) -> NDArray[np.float64]:
        """Mean |h| per neuron, [L, f]."""
        return self._neurons / self._tokens

    @property
    def heads(self) -> NDArray[np.float64]:
        """Mean L2 norm of a head's mixed values, [L, H]."""
        return self._heads / self._tokens


class Zeros:
    """Neurons whose activation is exactly zero: natural sparsity, of ReLU models only."""

    def __init__(self, config: ModelConfig) -> None:
        self._tokens = 0
        self._zeros = np.zeros(config.n_layers, np.int64)
        self._alive = np.zeros((config.n_layers, config.base_neurons), np.bool_)

    def add(self, trace: Trace) -> None:
        """Take in one piece."""
        self._tokens += trace.hidden.shape[1]
        for layer, hidden in enumerate(trace.hidden):
            active = hidden != 0  # [t, f]
            self._zeros[layer] += active.size - int(active.sum())
            self._alive[layer] |= active.any(axis=0)

    def result(self) -> dict[str, Any]:
        """Per layer: share of zeros, and of neurons that were zero for every token."""
        per_layer = self._zeros / (self._tokens * self._alive.shape[1])
        return {
            "share": per_layer.tolist(),
            "mean": float(per_layer.mean()),
            "never_active": (1 - self._alive.mean(axis=1)).tolist(),
        }
