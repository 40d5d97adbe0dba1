"""Which sections a packed model has: names, order and sizes, from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dejavu import nested as planes
from dejavu.codecs import GROUP, Codec, embed_codec, mlp_codec
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
class Planed:
    """A section of bit planes of ``count`` units (neurons, bundles of the head) of ``rows`` rows each.

    One plane of all units lies after the other, then the scales; each of these parts begins at an aligned byte.
    """

    name: str
    codec: Codec
    count: int
    rows: int
    width: int
    rest: NestedBundles | None
    """The section with what the leading planes leave; None: all planes are here."""

    def parts(self) -> list[tuple[int, int]]:
        """(offset in the section, bytes per unit) of each plane and of the scales."""
        chunks, groups = -(-self.width // planes.CHUNK), -(-self.width // GROUP)
        widths = planes.WIDTHS[self.codec][: planes.LEADING if self.rest else None]
        sizes = [self.rows * chunks * planes.CHUNK // 8 * bits for bits in widths]
        sizes.append(self.rows * groups * (2 if self.codec == "int8" else 4))
        starts = [0]
        for size in sizes:
            starts.append(_aligned(starts[-1] + size * self.count))
        return list(zip(starts[:-1], sizes, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of the section."""
        offset, size = self.parts()[-1]
        return _aligned(offset + size * self.count)


@dataclass(frozen=True)
class NestedBundles:
    """A section of bundles beside bit planes: per neuron the rest of its ``dots`` rows, and its down row."""

    name: str
    codec: Codec
    count: int
    dots: int
    width: int

    @property
    def nbytes(self) -> int:
        """Bytes of the section."""
        return int(load_core().nested_bundle_bytes(self.codec, self.width, self.dots)) * self.count


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


Section = Bundled | Planed | NestedBundles | Plain

_IN_BUNDLES = ("q", "k", "v", "o", "gate", "up", "down")


def sections(config: ModelConfig, codec: Codec, *, nested: bool = False) -> list[Section]:
    """All sections in the order in which they lie in the packed file: embedding, layers, head.

    With `nested`, the dots of MLPs and the head are bit planes (a head that is the embedding: both are there).

    Raises:
        InputError: `nested` with a codec that has no bit planes.
    """
    if nested:
        planes.widths(codec)
    found: list[Section] = []
    for name, shape in tensor_shapes(config).items():
        part = name.removeprefix("layers.").partition(".")[2] if name.startswith("layers.") else name
        if part == "attn_norm.weight":  # the first tensor of a layer
            found += _layer(config, codec, name.removesuffix("attn_norm.weight"), nested)
        if part in {f"{matrix}.weight" for matrix in _IN_BUNDLES} or (nested and part == "head.weight"):
            continue
        if part in ("embed.weight", "head.weight"):
            found.append(_rows(name, embed_codec(codec), shape))
        elif part in ("embed.proj_in", "embed.proj_out"):
            found.append(_rows(name, "f32", shape))
        else:
            found.append(Plain(name, shape))
    if nested:
        count = -(-config.vocab_size // PLAIN_ROWS)
        found.append(Planed("head.planes", embed_codec(codec), count, PLAIN_ROWS, config.embed_dim, None))
    return found


def offsets(found: list[Section], start: int) -> dict[str, tuple[int, int]]:
    """Name -> (offset, bytes) of each section when the first lies at `start` or the next aligned byte."""
    places = {}
    for section in found:
        start = _aligned(start)
        places[section.name] = (start, section.nbytes)
        start += section.nbytes
    return places


def _rows(name: str, codec: Codec, shape: tuple[int, ...]) -> Bundled:
    return Bundled(name, codec, -(-shape[0] // PLAIN_ROWS), PLAIN_ROWS, shape[1])


def _layer(config: ModelConfig, codec: Codec, prefix: str, nested: bool) -> list[Section]:
    d, hd = config.d_model, config.head_dim
    attention: list[Section] = [
        Bundled(f"{prefix}heads", codec, config.n_heads, hd, d),
        Bundled(f"{prefix}o", embed_codec(codec), config.n_heads, hd, d),
        Bundled(f"{prefix}kv", codec, config.n_kv_heads, 2 * hd, d),
    ]
    dots = 2 if config.gated else 1
    codec = mlp_codec(codec, int(prefix.split(".")[1]), config.n_layers)
    if not nested:
        return [*attention, Bundled(f"{prefix}mlp", codec, config.d_ff, dots + 1, d)]
    rest = NestedBundles(f"{prefix}mlp", codec, config.d_ff, dots, d)
    return [*attention, Planed(f"{prefix}planes", codec, config.d_ff, dots, d, rest), rest]


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT
