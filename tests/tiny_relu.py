"""A tiny ReLU model in memory whose insides are known: half of its neurons never fire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.models.config import ModelConfig
from dejavu.models.tensors import tensor_shapes

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

CONFIG = ModelConfig(
    "opt",
    vocab_size=40,
    d_model=32,
    n_layers=3,
    n_heads=4,
    n_kv_heads=4,
    head_dim=8,
    d_ff=64,
    max_context=600,
    activation="relu",
    gated=False,
    norm="layer",
    position="learned",
    position_offset=2,
    biases=("q", "k", "v", "o", "up", "down"),
)


class MemoryWeights:
    """`dejavu.models.weights.Weights` over arrays."""

    fingerprint = "f" * 64

    def __init__(self, tensors: dict[str, NDArray[np.float32]]) -> None:
        self.tensors = tensors

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def source_type(self, name: str) -> str:
        return "F32"

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        return self.tensors[name][start:stop].copy()

    def read_columns(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.tensors[name][:, start:stop])

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass


def half_dead(config: ModelConfig = CONFIG) -> MemoryWeights:
    """Random weights; the biases silence the first half of the neurons, and wake the other half for good."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        scale = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
        tensors[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
        if name.endswith("norm.weight"):
            tensors[name] += 1
        if name.endswith("up.bias"):
            tensors[name][: shape[0] // 2] = -1000
            tensors[name][shape[0] // 2 :] = 10
    return MemoryWeights(tensors)
