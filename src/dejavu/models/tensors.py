"""The tensors that a `ModelConfig` calls for: dejavu's names and their shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dejavu.models.config import ModelConfig


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the model, in the order in which they are used.

    Linears are ``[out, in]``. RoPE pairs dimension ``i`` of a head with ``i + rope_dim / 2``. RMS norms
    multiply by their weight as it is.
    """
    d, embed_dim = config.d_model, config.embed_dim
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (config.vocab_size, embed_dim)}
    if config.position == "learned":
        shapes["embed.position"] = (config.max_context + config.position_offset, d)
    if config.embed_norm:
        shapes |= _norm(config, "embed.norm")
    if config.d_embed:
        shapes["embed.proj_in"] = (d, embed_dim)
    for layer in range(config.n_layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in _layer(config).items()}
    if config.final_norm:
        shapes |= _norm(config, "final_norm")
    if config.d_embed:
        shapes["embed.proj_out"] = (embed_dim, d)
    if not config.tied_head:
        shapes["head.weight"] = (config.vocab_size, embed_dim)
    if "head" in config.biases:
        shapes["head.bias"] = (config.vocab_size,)
    return shapes


def _norm(config: ModelConfig, name: str) -> dict[str, tuple[int, ...]]:
    parts = ("weight",) if config.norm == "rms" else ("weight", "bias")
    return {f"{name}.{part}": (config.d_model,) for part in parts}


def _layer(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    d, ff = config.d_model, config.d_ff
    heads, kv_heads = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes = _norm(config, "attn_norm")
    for name, shape in {"q": (heads, d), "k": (kv_heads, d), "v": (kv_heads, d), "o": (d, heads)}.items():
        shapes |= _linear(config, name, shape)
    if config.qk_norm:
        shapes |= {"q_norm.weight": (config.head_dim,), "k_norm.weight": (config.head_dim,)}
    shapes |= _norm(config, "mlp_norm")
    if config.gated:
        shapes |= _linear(config, "gate", (ff, d))
    shapes |= _linear(config, "up", (ff, d)) | _linear(config, "down", (d, ff))
    if config.post_norms:
        shapes |= _norm(config, "attn_post_norm") | _norm(config, "mlp_post_norm")
    return shapes


def _linear(config: ModelConfig, name: str, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    bias: dict[str, tuple[int, ...]] = {f"{name}.bias": shape[:1]} if name in config.biases else {}
    return {f"{name}.weight": shape, **bias}
