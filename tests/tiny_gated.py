"""Tiny gated and plain models in memory for every activation with exact zeros."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dejavu.models.config import ModelConfig
from dejavu.models.tensors import tensor_shapes
from tiny_relu import MemoryWeights

KINDS = {"relu": 0.0, "relu2": 0.0, "fatrelu": 0.05, "shifted_relu": 0.2, "drelu": 0.0}
"""With thresholds. FATReLU jumps there, and bf16 products may fall on either side: the jump is small, as in models."""
GATED = ModelConfig(
    "llama",
    vocab_size=60,
    d_model=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    d_ff=150,
    max_context=200,
    biases=("gate", "up", "down"),
)


def configured(kind: str, *, gated: bool = True) -> ModelConfig:
    biases = GATED.biases if gated else ("up", "down")
    changes: dict[str, Any] = {"activation": kind, "activation_threshold": KINDS.get(kind, 0.0)}
    return dataclasses.replace(GATED, gated=gated, biases=biases, **changes)


def random_weights(config: ModelConfig) -> MemoryWeights:
    rng = np.random.default_rng(1)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        size = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
        tensors[name] = (size * rng.standard_normal(shape)).astype(np.float32)
        if name.endswith("norm.weight"):
            tensors[name] += 1
    return MemoryWeights(tensors)
