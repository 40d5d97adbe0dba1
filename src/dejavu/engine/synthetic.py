"""Models of any shape with made-up weights: for measuring speed, which does not depend on the values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.engine.core import load_core
from dejavu.engine.layout import Bundled, offsets, sections
from dejavu.engine.native import NativeExecutor
from dejavu.engine.packed import Packed, anonymous

if TYPE_CHECKING:
    from dejavu.codecs import Codec
    from dejavu.models.config import ModelConfig

_DISTINCT = 64
"""Bundles that are made of random values; the rest of a section repeats them."""


def synthetic(
    config: ModelConfig, codec: Codec, *, kv_dtype: str = "f16", threads: int | None = None, seed: int = 0
) -> NativeExecutor:
    """An executor of `config`'s shape whose weights are small random numbers, repeated to size."""
    wanted = sections(config, codec)
    places = offsets(wanted, 0)
    buffer = anonymous(max(offset + size for offset, size in places.values()))
    random = np.random.default_rng(seed)
    for section in wanted:
        offset, size = places[section.name]
        place = buffer[offset : offset + size]
        if not isinstance(section, Bundled):
            value = 1.0 if section.name.endswith("norm.weight") else 0.0
            place[:] = np.full(size // 4, value, np.float32).view(np.uint8)
            continue
        count = min(_DISTINCT, section.count)
        scale = np.float32(section.width**-0.5)
        values = random.standard_normal((count, section.rows, section.width), np.float32) * scale
        packed = np.empty(size // section.count * count, np.uint8)
        load_core().pack(section.codec, values, packed)
        for start in range(0, size, packed.nbytes):
            piece = place[start : start + packed.nbytes]
            piece[:] = packed[: piece.nbytes]
    return NativeExecutor(
        Packed(config, codec, "synthetic", places, buffer), kv_dtype=kv_dtype, threads=threads
    )
