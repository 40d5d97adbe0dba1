"""Which sections a packed model has: names, order and sizes, from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dejavu.codecs import Codec, embed_codec
from dejavu.engine.core import load_core
from dejavu.models.tensors import tensor_shapes

if TYPE_CHECKING:
    from dejavu.models.config import ModelConfig

ALIGNMENT = 64
PLAIN_ROWS = 16
"""Rows per bundle of matrices without neurons or heads."""


@dataclass(frozen=True)
class Bundled:
    """A section of bundles: ``count`` bundles of ``rows`` rows of ``width`` weights."""

    name: str
    codec: Codec
    count: int
    rows: int
    width: int

    @property
    def nbytes(self) -> int:
        """Bytes of the section."""
        return int(load_core().bundle_bytes(self.codec, self.width, self.rows)) * self.count


@dataclass(frozen=True)
class Plain:
    """A section of float32 values: norms, biases, learned positions."""

    name: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the section."""
        total = 4
        for n in self.shape:
            total *= n
        return total


Section = Bundled | Plain

_IN_BUNDLES = ("q", "k", "v", "o", "gate", "up", "down")


def sections(config: ModelConfig, codec: Codec) -> list[Section]:
    """All sections in the order in which they lie in the packed file: embedding, layers, head."""
    found: list[Section] = []
    for name, shape in tensor_shapes(config).items():
        part = name.removeprefix("layers.").partition(".")[2] if name.startswith("layers.") else name
        if part == "attn_norm.weight":  # the first tensor of a layer
            found += _layer(config, codec, name.removesuffix("attn_norm.weight"))
        if part in {f"{matrix}.weight" for matrix in _IN_BUNDLES}:
            continue
        if part in ("embed.weight", "head.weight"):
            found.append(_rows(name, embed_codec(codec), shape))
        elif part in ("embed.proj_in", "embed.proj_out"):
            found.append(_rows(name, "f32", shape))
        else:
            found.append(Plain(name, shape))
    return found


def offsets(found: list[Section], start: int) -> dict[str, tuple[int, int]]:
    """Name -> (offset, bytes) of each section when the first lies at `start` or the next aligned byte."""
    places = {}
    for section in found:
        start = -(-start // ALIGNMENT) * ALIGNMENT
        places[section.name] = (start, section.nbytes)
        start += section.nbytes
    return places


def _rows(name: str, codec: Codec, shape: tuple[int, ...]) -> Bundled:
    return Bundled(name, codec, -(-shape[0] // PLAIN_ROWS), PLAIN_ROWS, shape[1])


def _layer(config: ModelConfig, codec: Codec, prefix: str) -> list[Section]:
    d, head_rows = config.d_model, 2 * config.head_dim
    return [
        Bundled(f"{prefix}heads", codec, config.n_heads, head_rows, d),
        Bundled(f"{prefix}kv", codec, config.n_kv_heads, head_rows, d),
        Bundled(f"{prefix}mlp", codec, config.d_ff, 3 if config.gated else 2, d),
    ]
