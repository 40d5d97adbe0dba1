"""Codecs of weights in NumPy: the definition that the C++ packing reproduces bit for bit.

All arithmetic is float32, rounded after every single operation (no fused multiply-add), so that two
implementations can only agree or be wrong. A row is cut into groups of `GROUP` values; a last short group is
padded with zeros, and the padding counts as values.

- ``f32``: as it is.
- ``bf16``: rounded to nearest even.
- ``int8``: per group ``w' = scale * code``, ``code = clip(rint(w / scale), -127, 127)``. Of the scales
  ``f16(max|w| / levels)`` for each of `LEVELS`, the first with the least squared error is kept. Encoding decoded
  values gives the same values again.
- ``int4``: per group ``w' = scale * code + min``, codes 0..15, scale and min in float16. The range of the
  group is shrunk about its middle by each of `SHRINK`; from there the codes are rounded and scale and min fitted to
  them (least squares) in turn, `FITS` times. Of all that was tried, the first with the least squared error is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dejavu.errors import InputError, NumericsError
from dejavu.models.mapped import from_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

Codec = Literal["f32", "bf16", "int8", "int4"]
CODECS: tuple[Codec, ...] = get_args(Codec)
GROUP = 32
"""Values that share a scale (int8, int4)."""
LEVELS = tuple(range(127, 111, -1))
"""int8: candidates for the code of a group's largest value. Where a few per cent cost little, luck is worth more."""
SHRINK = (1.0, 0.9, 0.8)
"""int4: candidate factors on a group's range. Clipping rare extremes buys finer steps for the rest."""
FITS = 3
"""int4: how often scale and minimum are fitted to the codes, and the codes rounded again."""

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
    """Codec of the embedding, the head and attention's o beside linears in `codec`.

    int4 is too coarse there, so int8: o's rounding costs as much perplexity as that of the three times larger down.
    """
    return "int8" if codec == "int4" else codec


def mlp_codec(codec: Codec, layer: int, layers: int) -> Codec:
    """Codec of the MLP of layer `layer` in a model of `layers` layers whose linears are in `codec`.

    The first and the last layer cost several times as much perplexity as any other: they get `embed_codec`. Models
    of fewer than eight layers, where two are many, have none of that.
    """
    return embed_codec(codec) if layers >= 8 and layer in (0, layers - 1) else codec


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
        return Encoded(codec, width, from_float32(rows, "BF16"))
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


def is_settled(encoded: Encoded) -> bool:
    """Whether it is sure that encoding what these int8 codes stand for gives the same values again.

    The largest code of a group being one of `LEVELS`, that level's scale is found again, and with it no error. So it is for
    what `encode` makes, but where a scale is so small (below 6e-5) that float16 rounds it coarsely.
    """
    highest = np.abs(encoded.codes.reshape(-1, GROUP).astype(np.int16)).max(axis=1)
    return bool(((highest == 0) | (highest >= LEVELS[-1]) & (highest <= LEVELS[0])).all())


def roundtrip(codec: Codec, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """`decode` of `encode`, in blocks of rows so that intermediate arrays stay small. Raises as `encode`."""
    out = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        out[block] = decode(encode(codec, rows[block]))
    return out


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
    highest = np.abs(groups).max(axis=2)  # [n, groups]
    best = np.full(highest.shape, np.inf, np.float32)
    scales, codes = np.full(highest.shape, np.inf, np.float16), np.zeros(groups.shape, np.int8)
    for levels in LEVELS:
        scale = (highest / np.float32(levels)).astype(np.float16)
        s = scale.astype(np.float32)
        code = _codes(groups, s, -127, 127)
        difference = groups - s[..., None] * code
        error = _sum_by_halving(difference * difference)
        better = error < best
        best[better], scales[better], codes[better] = (
            error[better],
            scale[better],
            code[better].astype(np.int8),
        )
    return Encoded("int8", width, codes.reshape(len(groups), -1), scales)


def _encode_int4(groups: NDArray[np.float32], width: int) -> Encoded:
    low, high = groups.min(axis=2), groups.max(axis=2)  # [n, groups]
    half = np.float32(0.5)
    middle, reach = (low + high) * half, (high - low) * half
    best = np.full(low.shape, np.inf, np.float32)
    # Infinite scales never win a comparison: one that stays is seen by the caller's check.
    scales, mins = np.full(low.shape, np.inf, np.float16), np.zeros(low.shape, np.float16)
    codes = np.zeros(groups.shape, np.uint8)
    for factor in SHRINK:
        shrunken = np.float32(factor) * reach
        lo, hi = middle - shrunken, middle + shrunken
        scale = ((hi - lo) / np.float32(15)).astype(np.float16)
        minimum = (lo + np.float32(0)).astype(np.float16)  # + 0: a group of zeros of either sign gives +0
        for fit in range(FITS + 1):
            s, m = scale.astype(np.float32), minimum.astype(np.float32)
            above = groups - m[..., None]  # [n, groups, GROUP]
            code = _codes(above, s, 0, 15)
            difference = groups - (s[..., None] * code + m[..., None])
            error = _sum_by_halving(difference * difference)
            better = error < best
            best[better], scales[better], mins[better] = error[better], scale[better], minimum[better]
            codes[better] = code[better].astype(np.uint8)
            if fit < FITS:
                scale, minimum = _fit(code, above, scale, minimum)
    return Encoded("int4", width, codes.reshape(len(groups), -1), scales, mins)


def _fit(
    code: NDArray[np.float32],
    above: NDArray[np.float32],
    scale: NDArray[np.float16],
    minimum: NDArray[np.float16],
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """The line through (code, value) of each group; `above` are the values less the minimum [n, groups, GROUP].

    Where all codes are the same there is no such line, and `scale` and `minimum` [n, groups] stay.
    """
    size, m = np.float32(GROUP), minimum.astype(np.float32)
    total, squares = _sum_by_halving(code), _sum_by_halving(code * code)  # exact: small whole numbers
    height, products = _sum_by_halving(above), _sum_by_halving(code * above)
    spread = size * squares - total * total
    defined = spread > 0
    slope = (size * products - total * height) / np.where(defined, spread, np.float32(1))
    fitted = slope.astype(np.float16)
    lowest = (m + (height - fitted.astype(np.float32) * total) / size).astype(np.float16)
    return np.where(defined, fitted, scale), np.where(defined, lowest, minimum)


def _sum_by_halving(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum the last axis (32) as a fixed tree: 0..15 + 16..31, then 0..7 + 8..15, and so on to one value."""
    while values.shape[-1] > 1:
        middle = values.shape[-1] // 2
        values = values[..., :middle] + values[..., middle:]
    return values[..., 0]
