"""Shapes of well-known models, for benchmarks on synthetic weights: speed does not depend on the values."""

from __future__ import annotations

from dejavu.errors import InputError
from dejavu.models.config import ModelConfig, RopeScaling


def _opt(d_model: int, n_layers: int, n_heads: int) -> ModelConfig:
    return ModelConfig(
        family="opt",
        vocab_size=50272,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        d_ff=4 * d_model,
        max_context=2048,
        activation="relu",
        gated=False,
        norm="layer",
        position="learned",
        position_offset=2,
        biases=("q", "k", "v", "o", "up", "down"),
        bos_token_id=2,
        eos_token_ids=(2,),
    )


def _llama32(d_model: int, n_layers: int, n_heads: int, head_dim: int) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=128256,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=8,
        head_dim=head_dim,
        d_ff=8192,
        max_context=131072,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(
            type="llama3", factor=32.0, original_context=8192, low_freq_factor=1.0, high_freq_factor=4.0
        ),
        bos_token_id=128000,
        eos_token_ids=(128001,),
    )


SHAPES: dict[str, ModelConfig] = {
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "llama-1b": _llama32(2048, 16, 32, 64),
    "llama-3b": _llama32(3072, 28, 24, 128),
    "tinyllama-1.1b": ModelConfig(
        family="llama",
        vocab_size=32000,
        d_model=2048,
        n_layers=22,
        n_heads=32,
        n_kv_heads=4,
        head_dim=64,
        d_ff=5632,
        max_context=2048,
        tied_head=False,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
}
"""OPT as published by Meta; llama-1b and llama-3b are Llama 3.2; tinyllama-1.1b is TinyLlama v1.1."""


def shape(name: str) -> ModelConfig:
    """The configuration called `name`. Raises `InputError` for an unknown name."""
    try:
        return SHAPES[name]
    except KeyError:
        raise InputError(f"unknown shape {name!r}", fix=f"choose one of: {', '.join(SHAPES)}") from None
