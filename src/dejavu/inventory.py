"""What a model consists of: parameters and packed bytes by part, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from dejavu.codecs import CODECS, Codec
from dejavu.engine.layout import sections
from dejavu.models.tensors import tensor_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dejavu.models.config import ModelConfig

Part = Literal["embedding", "attention", "mlp", "head", "norms"]
PARTS: tuple[Part, ...] = ("embedding", "attention", "mlp", "head", "norms")
"""Biases count with the part that they belong to. A head that is the embedding itself has no parameters."""


@dataclass(frozen=True)
class PartSize:
    """Parameters of a part, and its bytes in each codec as the native engine packs it."""

    parameters: int
    bytes: Mapping[Codec, int]


def inventory(config: ModelConfig) -> dict[Part, PartSize]:
    """Count the parameters of a model, and their bytes when packed, by part."""
    parameters = dict.fromkeys(PARTS, 0)
    for name, shape in tensor_shapes(config).items():
        parameters[part_of(name)] += prod(shape)
    sizes = {part: dict.fromkeys(CODECS, 0) for part in PARTS}
    for codec in CODECS:
        for section in sections(config, codec):
            sizes[part_of(section.name)][codec] += section.nbytes
    return {part: PartSize(parameters[part], sizes[part]) for part in PARTS}


def part_of(name: str) -> Part:
    """The part that a tensor, or a section of a packed model, belongs to."""
    piece = name.split(".")[2] if name.startswith("layers.") else name
    if "norm" in piece:
        return "norms"
    if piece.startswith("embed."):
        return "embedding"
    if piece.startswith("head."):
        return "head"
    return "attention" if piece in ("q", "k", "v", "o", "heads", "kv") else "mlp"
