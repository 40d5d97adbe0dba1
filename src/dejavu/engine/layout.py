"""Which sections a packed model has: names, order and sizes, from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dejavu.codecs import Codec, embed_codec, mlp_codec
from dejavu.engine.core import load_core
from dejavu.models.tensors import tensor_shapes
from dejavu.nested import check_cut

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
class Leading:
    """A section of ``bits`` leading bits (see `dejavu.nested`) of ``count`` bundles of ``rows`` rows, in tiles of sixteen.

    Gate and up (or up) of each neuron; what else belongs to it is in the section ``rest``.
    """

    name: str
    codec: Codec
    count: int
    rows: int
    width: int
    bits: int
    rest: Rest

    @property
    def nbytes(self) -> int:
        """Bytes of the section."""
        core = load_core()
        return int(core.nested_bytes(self.codec, self.width, self.rows, self.count, self.bits)[0])


@dataclass(frozen=True)
class Rest:
    """The section beside `Leading`: the bits after ``bits`` of all neurons' ``dots`` rows, then all down rows."""

    name: str
    codec: Codec
    count: int
    dots: int
    width: int
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes of the section."""
        return int(load_core().nested_bytes(self.codec, self.width, self.dots, self.count, self.bits)[1])


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


Section = Bundled | Leading | Rest | Plain

_IN_BUNDLES = ("q", "k", "v", "o", "gate", "up", "down")


def sections(config: ModelConfig, codec: Codec, *, leading: int = 0) -> list[Section]:
    """All sections in the order in which they lie in the packed file: embedding, layers, head.

    With `leading`, so many leading bits of gate and up lie apart.

    Raises:
        InputError: rows of the codec cannot be cut there.
    """
    check_cut(codec, leading)
    found: list[Section] = []
    for name, shape in tensor_shapes(config).items():
        part = name.removeprefix("layers.").partition(".")[2] if name.startswith("layers.") else name
        if part == "attn_norm.weight":  # the first tensor of a layer
            found += _layer(config, codec, name.removesuffix("attn_norm.weight"), leading)
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
        start = _aligned(start)
        places[section.name] = (start, section.nbytes)
        start += section.nbytes
    return places


def _rows(name: str, codec: Codec, shape: tuple[int, ...]) -> Bundled:
    return Bundled(name, codec, -(-shape[0] // PLAIN_ROWS), PLAIN_ROWS, shape[1])


def _layer(config: ModelConfig, codec: Codec, prefix: str, leading: int) -> list[Section]:
    d, hd = config.d_model, config.head_dim
    attention: list[Section] = [
        Bundled(f"{prefix}heads", codec, config.n_heads, hd, d),
        Bundled(f"{prefix}o", embed_codec(codec), config.n_heads, hd, d),
        Bundled(f"{prefix}kv", codec, config.n_kv_heads, 2 * hd, d),
    ]
    dots = 2 if config.gated else 1
    codec = mlp_codec(codec, int(prefix.split(".")[1]), config.n_layers)
    if not leading:
        return [*attention, Bundled(f"{prefix}mlp", codec, config.d_ff, dots + 1, d)]
    rest = Rest(f"{prefix}mlp", codec, config.d_ff, dots, d, leading)
    return [*attention, Leading(f"{prefix}lead", codec, config.d_ff, dots, d, leading, rest), rest]


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT
