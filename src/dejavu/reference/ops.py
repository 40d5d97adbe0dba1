"""The arithmetic of a decoder, one function per operation, float32 in and out.

Shapes: t tokens, d = d_model, H heads, K K/V heads, e = head_dim, n positions in the cache.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.models.config import Activation

    Array = NDArray[np.float32]

_GELU = np.float32(math.sqrt(2 / math.pi))
_erf = np.frompyfunc(math.erf, 1, 1)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Over the last axis: x [..., d], weight [d] -> [..., d]."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)  # [..., 1]
    return np.asarray(x / np.sqrt(mean_square + np.float32(eps)) * weight, np.float32)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Over the last axis: x [..., d], weight and bias [d] -> [..., d]."""
    centred = x - np.mean(x, axis=-1, keepdims=True)  # [..., d]
    variance = np.mean(centred * centred, axis=-1, keepdims=True)  # [..., 1]
    return np.asarray(centred / np.sqrt(variance + np.float32(eps)) * weight + bias, np.float32)


def activate(x: Array, kind: Activation, threshold: float = 0.0) -> Array:
    """The MLP's activation, element by element; drelu: of one factor."""
    if kind in ("relu", "drelu"):
        return np.asarray(np.maximum(x, 0), np.float32)
    if kind == "relu2":
        return np.asarray(np.maximum(x, 0) ** 2, np.float32)
    if kind == "fatrelu":
        return np.asarray(np.where(x > np.float32(threshold), x, 0), np.float32)
    if kind == "shifted_relu":
        return np.asarray(np.maximum(x - np.float32(threshold), 0), np.float32)
    if kind == "silu":
        return np.asarray(x * _sigmoid(x), np.float32)
    if kind == "gelu":
        erf = _erf(x / np.float32(math.sqrt(2))).astype(np.float32)
        return np.asarray(np.float32(0.5) * x * (1 + erf), np.float32)
    inner = _GELU * (x + np.float32(0.044715) * x * x * x)  # gelu_tanh
    return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)), np.float32)


def gated(gate: Array, up: Array, kind: Activation) -> Array:
    """Hidden values of a gated MLP from `activate` of the gate's products and from up's products, alike in shape."""
    return gate * (np.maximum(up, 0) if kind == "drelu" else up)


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x)), np.float32)  # never overflows


def softcap(x: Array, cap: float) -> Array:
    """``cap * tanh(x / cap)``; a cap of 0 is none."""
    return np.asarray(np.float32(cap) * np.tanh(x / np.float32(cap)), np.float32) if cap else x


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """RoPE on the leading dimensions of each head: x [t, heads, e], cos and sin [t, r/2] -> [t, heads, e].

    Dimension i < r/2 and dimension i + r/2 are the two coordinates that are turned.
    """
    half = cos.shape[1]  # r/2
    cos, sin = cos[:, None, :], sin[:, None, :]  # [t, 1, r/2]
    a, b, rest = (
        x[..., :half],
        x[..., half : 2 * half],
        x[..., 2 * half :],
    )  # [t, heads, r/2] twice, [..., e - r]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)  # [t, heads, e]


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    slopes: Array | None = None,
) -> Array:
    """Causal attention of the last t of n positions.

    Args:
        q: [t, H, e].
        k: [n, K, e]; head h attends with K/V head ``h // (H / K)``.
        v: [n, K, e].
        scale: factor on q.k.
        window: a token sees itself and the ``window - 1`` before it; 0: all before it.
        cap: softcap of the scores; 0: none.
        slopes: ALiBi, [H].

    Returns:
        [t, H, e].
    """
    weights = attention_weights(q, k, scale=scale, window=window, cap=cap, slopes=slopes)  # [K, H/K, t, n]
    mixed = weights @ v.transpose(1, 0, 2)[:, None]  # [K, H/K, t, e]
    return np.ascontiguousarray(mixed.transpose(2, 0, 1, 3).reshape(q.shape), np.float32)  # [t, H, e]


def attention_weights(
    q: Array, k: Array, *, scale: float, window: int = 0, cap: float = 0.0, slopes: Array | None = None
) -> Array:
    """How much each of the last t positions takes from each of n, per head; arguments as in `attention`.

    Returns:
        [K, H/K, t, n]; the n shares add up to 1.
    """
    (t, H, e), (n, K, _) = q.shape, k.shape
    grouped = q.reshape(t, K, H // K, e).transpose(1, 2, 0, 3)  # [K, H/K, t, e]
    scores = grouped @ k.transpose(1, 2, 0)[:, None] * np.float32(scale)  # [K, H/K, t, n]
    scores = softcap(scores, cap)  # [K, H/K, t, n]
    here, there = np.arange(n - t, n)[:, None], np.arange(n)[None, :]  # [t, 1], [1, n]
    if slopes is not None:
        distance = (there - here).astype(np.float32)  # [t, n], at most 0 where it counts
        scores = scores + slopes.reshape(K, H // K, 1, 1) * distance  # [K, H/K, t, n]
    seen = (there <= here) & ((there > here - window) if window else True)  # [t, n]
    scores = np.where(seen, scores, np.float32(-np.inf))  # [K, H/K, t, n]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))  # [K, H/K, t, n]
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)  # [K, H/K, t, n]
