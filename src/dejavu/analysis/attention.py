"""What a layer's attention does with its input, opened up: shares, mixed values. Equal to the reference executor.

Shapes: t tokens, d = d_model, H heads, K K/V heads, e = head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dejavu.models.alibi import alibi_slopes
from dejavu.models.rope import is_local, tables
from dejavu.reference.ops import attention_weights, layer_norm, rms_norm, rotate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights

    Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Attention:
    """One layer's attention over a fresh sequence."""

    normed: Array
    """[t, d]: the block's input after its norm."""
    shares: Array
    """[H, t, t]: how much of each token a token takes; rows add up to 1."""
    mixed: Array
    """[t, H * e]: each head's mixture of values, before the output rows."""


def attend(config: ModelConfig, weights: Weights, layer: int, x: Array) -> Attention:
    """Attention of `layer` for the residual stream `x` [t, d] of a fresh sequence."""
    c, t, prefix = config, len(x), f"layers.{layer}."
    y = norm(c, weights, prefix + "attn_norm", x) if c.pre_norm else x  # [t, d]
    q = linear(c, weights, prefix + "q", y).reshape(t, c.n_heads, c.head_dim)  # [t, H, e]
    k = linear(c, weights, prefix + "k", y).reshape(t, c.n_kv_heads, c.head_dim)  # [t, K, e]
    v = linear(c, weights, prefix + "v", y).reshape(t, c.n_kv_heads, c.head_dim)  # [t, K, e]
    if c.qk_norm:
        q = rms_norm(q, weights.read(prefix + "q_norm.weight"), c.norm_eps)  # [t, H, e]
        k = rms_norm(k, weights.read(prefix + "k_norm.weight"), c.norm_eps)  # [t, K, e]
    if c.position == "rope":
        cos, sin = tables(c, np.arange(t), local=is_local(c, layer), length=t)  # [t, r/2]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # [t, H, e], [t, K, e]
    shares = attention_weights(
        q,
        k,
        scale=c.scale,
        window=c.sliding_window if c.windowed(layer) else 0,
        cap=c.attn_softcap,
        slopes=alibi_slopes(c.n_heads) if c.position == "alibi" else None,
    )  # [K, H/K, t, t]
    mixed = (shares @ v.transpose(1, 0, 2)[:, None]).transpose(2, 0, 1, 3)  # [t, K, H/K, e]
    return Attention(y, shares.reshape(c.n_heads, t, t), mixed.reshape(t, -1))


def linear(config: ModelConfig, weights: Weights, name: str, x: Array) -> Array:
    """[t, in] -> [t, out]."""
    y: Array = x @ weights.read(name + ".weight").T  # [t, out]
    return y + weights.read(name + ".bias") if name.rpartition(".")[2] in config.biases else y


def norm(config: ModelConfig, weights: Weights, name: str, x: Array) -> Array:
    """[t, d] -> [t, d]."""
    if config.norm == "rms":
        return rms_norm(x, weights.read(name + ".weight"), config.norm_eps)
    return layer_norm(x, weights.read(name + ".weight"), weights.read(name + ".bias"), config.norm_eps)
