"""Rotary position embedding: frequencies and tables, the one definition for all executors.

Follows Hugging Face transformers operation by operation in float32, because at large positions the last bit
of a frequency is visible in the angle.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.models.config import ModelConfig, RopeScaling


def is_local(config: ModelConfig, layer: int) -> bool:
    """Whether `layer` turns with the unscaled `rope_local_theta` (Gemma 3's sliding-window layers)."""
    return config.rope_local_theta > 0 and bool(config.window_layers) and config.window_layers[layer]


def depends_on_length(config: ModelConfig) -> bool:
    """Whether the frequencies change while a sequence grows (rope type "dynamic")."""
    return config.rope_scaling.type == "dynamic"


def frequencies(config: ModelConfig, *, local: bool = False, length: int = 0) -> NDArray[np.float32]:
    """Radians per position for each pair of dimensions, float32 [rope_dim / 2].

    Args:
        config: position must be "rope".
        local: for the layers of which `is_local` is true.
        length: tokens of the sequence after the current call. Only "dynamic" looks at it: beyond the original
            context, all tokens of a call turn by the frequencies of that length; cached keys stay as they
            are.
    """
    dim = config.rope_dim
    if local:
        return _unscaled(config.rope_local_theta, dim)
    scaling = config.rope_scaling
    if scaling.type == "dynamic":
        length = max(length, scaling.original_context)
        stretch = scaling.factor * length / scaling.original_context - (scaling.factor - 1)
        return _unscaled(config.rope_theta * stretch ** (dim / (dim - 2)), dim, scaling.freq_factors)
    plain = _unscaled(config.rope_theta, dim, scaling.freq_factors)
    if scaling.type == "linear":
        return plain / np.full_like(plain, scaling.factor)
    if scaling.type == "llama3":
        return _llama3(plain, scaling)
    if scaling.type == "yarn":
        return _yarn(plain, scaling, config.rope_theta, dim)
    return plain


def attention_factor(config: ModelConfig, *, local: bool = False) -> float:
    """Factor on cos and sin (yarn); 1 otherwise."""
    return 1.0 if local else config.rope_scaling.attention_factor


def tables(
    config: ModelConfig, positions: NDArray[np.int64], *, local: bool = False, length: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cos and sin for `positions` [t], both float32 [t, rope_dim / 2]; see `frequencies` for the rest."""
    angles = positions.astype(np.float32)[:, None] * frequencies(config, local=local, length=length)
    factor = np.float32(attention_factor(config, local=local))
    return np.cos(angles) * factor, np.sin(angles) * factor


def _unscaled(theta: float, dim: int, divisors: tuple[float, ...] = ()) -> NDArray[np.float32]:
    """``theta ** (-2i / dim)``, divided by `divisors` where there are any."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    plain: NDArray[np.float32] = 1 / np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    return np.divide(plain, np.array(divisors, np.float32), out=plain) if divisors else plain


def _llama3(plain: NDArray[np.float32], scaling: RopeScaling) -> NDArray[np.float32]:
    """Long wavelengths are divided by the factor, short ones kept, those between are blended."""
    wavelength = np.float32(2 * math.pi) / plain
    turns = np.float32(scaling.original_context) / wavelength  # over the original context
    factor, low, high = (
        np.float32(x) for x in (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor)
    )
    keep = np.minimum(np.maximum((turns - low) / (high - low), np.float32(0)), np.float32(1))
    blended: NDArray[np.float32] = (1 - keep) * plain / factor + keep * plain
    return blended


def _yarn(plain: NDArray[np.float32], scaling: RopeScaling, theta: float, dim: int) -> NDArray[np.float32]:
    """Dimensions that turn often within the original context are kept, slow ones divided by the factor."""

    def dimension(turns: float) -> float:
        """Index of the dimension that turns `turns` times within the original context."""
        return dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    slow = np.minimum(np.maximum(ramp, np.float32(0)), np.float32(1))
    blended: NDArray[np.float32] = plain / np.float32(scaling.factor) * slow + plain * (1 - slow)
    return blended
