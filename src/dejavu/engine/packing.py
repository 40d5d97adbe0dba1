"""Encodes a model's tensors into the sections of a packed model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.engine.bundles import chunks
from dejavu.engine.core import load_core
from dejavu.engine.layout import Bundled, Plain, Rest
from dejavu.errors import NumericsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dejavu.codecs import Codec
    from dejavu.engine.layout import Leading, Section
    from dejavu.models.config import ModelConfig
    from dejavu.models.progress import Progress
    from dejavu.models.weights import Weights

    Places = dict[str, tuple[int, int]]
    Put = Callable[[int, NDArray[Any]], None]


def pack_sections(
    config: ModelConfig,
    weights: Weights,
    wanted: list[Section],
    places: Places,
    put: Put,
    threads: int,
    progress: Progress,
) -> None:
    """Encode all `wanted` sections, handing pieces of bytes to `put(offset, piece)`; the rest is zero.

    Raises:
        NumericsError: the weights hold NaN, infinity, or values that the codec cannot hold.
    """
    for section in wanted:
        if isinstance(section, Plain):
            _pack_plain(weights, section, places, put)
        elif isinstance(section, Bundled):
            _pack_bundles(config, weights, section, places, put, threads)
        elif not isinstance(section, Rest):  # which is written with the leading bits
            _pack_leading(config, weights, section, places, put, threads)
        progress.advance(section.nbytes)
        weights.release()


def encode_bundles(codec: Codec, rows: NDArray[np.float32], threads: int = 1) -> NDArray[np.uint8]:
    """Float32 rows [bundles, rows, width] as bytes of bundles. Raises `ValueError` for NaN, infinity, overflow."""
    core = load_core()
    packed = np.empty(core.bundle_bytes(codec, rows.shape[2], rows.shape[1]) * len(rows), np.uint8)
    core.pack(codec, np.ascontiguousarray(rows), packed, threads)
    return packed


def split_bundles(
    section: Leading, packed: NDArray[np.uint8], threads: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut bytes of bundles into leading bits, other bits (int4: none) and down rows."""
    core = load_core()
    count = len(packed) // core.bundle_bytes(section.codec, section.width, section.rows + 1)
    sizes = core.nested_bytes(section.codec, section.width, section.rows, count, section.bits)
    lead, rest = (np.empty(size, np.uint8) for size in sizes)
    core.split_nested(section.codec, packed, section.width, section.rows, section.bits, lead, rest, threads)
    border = len(rest) - count * core.bundle_bytes(section.codec, section.width, 1)
    return lead, rest[:border], rest[border:]


def _pack_plain(weights: Weights, section: Plain, places: Places, put: Put) -> None:
    values = weights.read(section.name)
    if not np.isfinite(values).all():
        raise NumericsError(f"{section.name} holds NaN or infinity", fix="fetch or export the model again")
    put(places[section.name][0], values)


def _pack_bundles(
    config: ModelConfig, weights: Weights, section: Bundled, places: Places, put: Put, threads: int
) -> None:
    offset = places[section.name][0]
    for chunk in chunks(config, weights, section):
        packed = _encoded(section, chunk, threads)
        put(offset, packed)
        offset += packed.nbytes


def _pack_leading(
    config: ModelConfig, weights: Weights, section: Leading, places: Places, put: Put, threads: int
) -> None:
    start = places[section.name][0]
    beside, size = places[section.rest.name]
    behind = beside + size - section.count * load_core().bundle_bytes(section.codec, section.width, 1)
    for chunk in chunks(config, weights, section):
        lead, low, down = split_bundles(section, _encoded(section, chunk, threads), threads)
        put(start, lead)
        put(beside, low)
        put(behind, down)
        start, beside, behind = start + lead.nbytes, beside + low.nbytes, behind + down.nbytes


def _encoded(section: Bundled | Leading, chunk: NDArray[np.float32], threads: int) -> NDArray[np.uint8]:
    try:
        return encode_bundles(section.codec, chunk, threads)
    except ValueError as error:
        raise NumericsError(
            f"{section.name}: {error}", fix="fetch or export the model again, or try --codec bf16 or f32"
        ) from error
