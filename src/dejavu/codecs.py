"""Codecs of weights in NumPy: the definition that the C++ packing reproduces bit for bit.

All arithmetic is float32, rounded after every single operation (no fused multiply-add), so that two
implementations can only agree or be wrong. A row is cut into groups of `GROUP` values; a last short group is
padded with zeros, and the padding counts as values.

- ``f32``: as it is.
- ``bf16``: rounded to nearest even.
- ``int8``: per group ``scale = f16(max|w| / 127)``, ``code = clip(rint(w / scale), -127, 127)``,
  ``w' = scale * code``.
- ``int4``: per group ``w' = scale * code + min``, codes 0..15, scale and min in float16. The range of the
  group is shrunk about its middle by each of `SHRINK`; the first with the least squared error is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dejavu.errors import InputError, NumericsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Codec = Literal["f32", "bf16", "int8", "int4"]
CODECS: tuple[Codec, ...] = get_args(Codec)
GROUP = 32
"""Values that share a scale (int8, int4)."""
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)
"""int4: candidate factors on a group's range. Clipping rare extremes buys finer steps for the rest."""

_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Encoded:
    """Rows of weights in one codec; ``p`` is ``width`` rounded up to a multiple of `GROUP` (int8, int4)."""

    codec: Codec
    width: int
    """Values per row before padding."""
    codes: NDArray[Any]
    """f32: float32 [n, width]; bf16: uint16 [n, width]; int8: int8 [n, p]; int4: uint8 [n, p] of 0..15."""
    scales: NDArray[np.float16] | None = None
    """int8, int4: [n, p / GROUP]."""
    mins: NDArray[np.float16] | None = None
    """int4: [n, p / GROUP]."""


def embed_codec(codec: Codec) -> Codec:
    """Codec of the embedding and head beside linears in `codec`: int4 is too coarse there, so int8."""
    return "int8" if codec == "int4" else codec


def encode(codec: Codec, rows: NDArray[np.float32]) -> Encoded:
    """Encode float32 `rows` [n, d].

    Raises:
        InputError: `codec` is unknown.
        NumericsError: `rows` holds NaN or infinity, or values whose scale or minimum is beyond float16.
    """
    if codec not in CODECS:
        raise InputError(f"codec {codec!r} is unknown; there are: {', '.join(CODECS)}")
    if not np.isfinite(rows).all():
        raise NumericsError("weights hold NaN or infinity", fix="fetch or export the model again")
    width = rows.shape[1]
    if codec == "f32":
        return Encoded(codec, width, rows.astype(np.float32))
    if codec == "bf16":
        return Encoded(codec, width, _to_bf16(rows))
    groups = _grouped(rows)
    with np.errstate(over="ignore", invalid="ignore"):  # float16 overflow is reported below, as an error
        encoded = _encode_int8(groups, width) if codec == "int8" else _encode_int4(groups, width)
    for part in (encoded.scales, encoded.mins):
        if part is not None and not np.isfinite(part).all():
            raise NumericsError(
                f"weights up to {np.abs(rows).max():.3g} do not fit {codec}: its scales are float16",
                fix="use --codec bf16 or f32",
            )
    return encoded


def decode(encoded: Encoded) -> NDArray[np.float32]:
    """The float32 rows [n, width] that `encoded` stands for."""
    if encoded.codec == "f32":
        return encoded.codes.astype(np.float32)
    if encoded.scales is None:  # bf16
        return (encoded.codes.astype(np.uint32) << 16).view(np.float32)
    codes = encoded.codes.reshape(*encoded.scales.shape, GROUP).astype(np.float32)  # [n, groups, GROUP]
    values = codes * encoded.scales[..., None].astype(np.float32)
    if encoded.mins is not None:
        values += encoded.mins[..., None].astype(np.float32)
    return np.ascontiguousarray(values.reshape(len(codes), -1)[:, : encoded.width])


def roundtrip(codec: Codec, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """`decode` of `encode`, in blocks of rows so that intermediate arrays stay small. Raises as `encode`."""
    out = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        out[block] = decode(encode(codec, rows[block]))
    return out


def _to_bf16(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def _grouped(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, d] -> [n, groups, GROUP], zero padded."""
    n, width = rows.shape
    groups = -(-width // GROUP)
    padded = np.zeros((n, groups * GROUP), np.float32)
    padded[:, :width] = rows
    return padded.reshape(n, groups, GROUP)


def _codes(
    values: NDArray[np.float32], scale: NDArray[np.float32], low: int, high: int
) -> NDArray[np.float32]:
    """Round values [..., GROUP] / scale [...] into low..high; a scale of zero gives zero."""
    quotient = np.divide(values, scale[..., None], out=np.zeros_like(values), where=scale[..., None] != 0)
    codes: NDArray[np.float32] = np.minimum(np.maximum(np.rint(quotient), np.float32(low)), np.float32(high))
    return codes


def _encode_int8(groups: NDArray[np.float32], width: int) -> Encoded:
    scales = (np.abs(groups).max(axis=2) / np.float32(127)).astype(np.float16)  # [n, groups]
    codes = _codes(groups, scales.astype(np.float32), -127, 127).astype(np.int8)
    return Encoded("int8", width, codes.reshape(len(groups), -1), scales)


def _encode_int4(groups: NDArray[np.float32], width: int) -> Encoded:
    low, high = groups.min(axis=2), groups.max(axis=2)  # [n, groups]
    half = np.float32(0.5)
    middle, reach = (low + high) * half, (high - low) * half
    best = np.full(low.shape, np.inf, np.float32)
    scales, mins = np.zeros(low.shape, np.float16), np.zeros(low.shape, np.float16)
    codes = np.zeros(groups.shape, np.uint8)
    for factor in SHRINK:
        shrunken = np.float32(factor) * reach
        lo, hi = middle - shrunken, middle + shrunken
        scale = ((hi - lo) / np.float32(15)).astype(np.float16)
        minimum = (lo + np.float32(0)).astype(np.float16)  # + 0: a group of zeros of either sign gives +0
        s, m = scale.astype(np.float32), minimum.astype(np.float32)
        code = _codes(groups - m[..., None], s, 0, 15)
        difference = groups - (s[..., None] * code + m[..., None])
        error = _sum_by_halving(difference * difference)
        better = error < best
        best[better], scales[better], mins[better] = error[better], scale[better], minimum[better]
        codes[better] = code[better].astype(np.uint8)
    # Infinite scales never win a comparison; keep them visible for the caller's check.
    scales[np.isinf(best)] = np.float16(np.inf)
    return Encoded("int4", width, codes.reshape(len(groups), -1), scales, mins)


def _sum_by_halving(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum the last axis (32) as a fixed tree: 0..15 + 16..31, then 0..7 + 8..15, and so on to one value."""
    while values.shape[-1] > 1:
        middle = values.shape[-1] // 2
        values = values[..., :middle] + values[..., middle:]
    return values[..., 0]
