"""Models of any shape with made-up weights: for measuring speed, which does not depend on the values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.engine.layout import Bundled, Leading, Plain, offsets, sections
from dejavu.engine.native import NativeExecutor
from dejavu.engine.packed import Packed, anonymous
from dejavu.engine.packing import encode_bundles, split_bundles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.codecs import Codec
    from dejavu.models.config import ModelConfig

_DISTINCT = 64
"""Bundles that are made of random values; the rest of a section repeats them."""


def synthetic(
    config: ModelConfig,
    codec: Codec,
    *,
    leading: int = 0,
    kv_dtype: str = "f16",
    threads: int | None = None,
    seed: int = 0,
) -> NativeExecutor:
    """An executor of `config`'s shape whose weights are small random numbers, repeated to size."""
    wanted = sections(config, codec, leading=leading)
    places = offsets(wanted, 0)
    buffer = anonymous(max(offset + size for offset, size in places.values()))
    random = np.random.default_rng(seed)

    def bundles(section: Bundled | Leading, rows: int) -> NDArray[np.uint8]:
        shape = (min(_DISTINCT, section.count), rows, section.width)
        return encode_bundles(
            section.codec, random.standard_normal(shape, np.float32) * np.float32(section.width**-0.5)
        )

    for section in wanted:
        offset, size = places[section.name]
        place = buffer[offset : offset + size]
        if isinstance(section, Plain):
            value = 1.0 if section.name.endswith("norm.weight") else 0.0
            place[:] = np.full(size // 4, value, np.float32).view(np.uint8)
        elif isinstance(section, Bundled):
            _repeat(bundles(section, section.rows), place)
        elif isinstance(section, Leading):
            lead, low, down = split_bundles(section, bundles(section, section.rows + 1))
            start, size = places[section.rest.name]
            border = start + size * len(low) // (len(low) + len(down))
            _repeat(lead, place)
            _repeat(low, buffer[start:border])
            _repeat(down, buffer[border : start + size])
    return NativeExecutor(
        Packed(config, codec, "synthetic", places, buffer, leading), kv_dtype=kv_dtype, threads=threads
    )


def _repeat(piece: NDArray[np.uint8], place: NDArray[np.uint8]) -> None:
    for start in range(0, place.nbytes, max(piece.nbytes, 1)):
        end = min(start + piece.nbytes, place.nbytes)
        place[start:end] = piece[: end - start]
