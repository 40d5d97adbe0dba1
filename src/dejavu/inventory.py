"""What a model consists of: parameters and bytes by part, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from dejavu.codecs import CODECS, GROUP, Codec, embed_codec
from dejavu.models.tensors import tensor_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dejavu.models.config import ModelConfig

Part = Literal["embedding", "attention", "mlp", "head", "norms"]
PARTS: tuple[Part, ...] = ("embedding", "attention", "mlp", "head", "norms")
"""Biases count with the part that they belong to. A head that is the embedding itself has no parameters."""

KV_BYTES: dict[str, float] = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}
"""Bytes of one value of the KV cache. int8 adds a float32 scale per key and per value of each head."""


@dataclass(frozen=True)
class PartSize:
    """Parameters of a part, and its bytes in each codec."""

    parameters: int
    bytes: Mapping[Codec, int]


def row_bytes(codec: Codec, width: int) -> int:
    """Bytes of one row of `width` weights: codes, and scales (and minima) in float16 per group."""
    groups = -(-width // GROUP)
    sizes = {
        "f32": 4 * width,
        "bf16": 2 * width,
        "int8": groups * (GROUP + 2),
        "int4": groups * (GROUP // 2 + 4),
    }
    return sizes[codec]


def inventory(config: ModelConfig) -> dict[Part, PartSize]:
    """Count the parameters of a model, and their bytes when packed, by part."""
    parameters = dict.fromkeys(PARTS, 0)
    sizes = {part: dict.fromkeys(CODECS, 0) for part in PARTS}
    for name, shape in tensor_shapes(config).items():
        part = part_of(name)
        count = prod(shape)
        parameters[part] += count
        for codec in CODECS:
            sizes[part][codec] += _stored_bytes(config, name, shape, codec)
    return {part: PartSize(parameters[part], sizes[part]) for part in PARTS}


def part_of(name: str) -> Part:
    """The part that the tensor with the canonical `name` belongs to."""
    tensor = name.split(".")[2] if name.startswith("layers.") else name
    if "norm" in tensor:
        return "norms"
    if tensor.startswith("embed."):
        return "embedding"
    if tensor.startswith("head."):
        return "head"
    return "attention" if tensor in ("q", "k", "v", "o") else "mlp"


def kv_bytes_per_token(config: ModelConfig, kv_dtype: str) -> int:
    """Bytes that one token takes in the KV cache over all layers."""
    scale = 4 if kv_dtype == "int8" else 0
    return int(2 * config.n_layers * config.n_kv_heads * (config.head_dim * KV_BYTES[kv_dtype] + scale))


def _stored_bytes(config: ModelConfig, name: str, shape: tuple[int, ...], codec: Codec) -> int:
    if len(shape) == 1 or name.startswith(("embed.position", "embed.proj")):
        return 4 * prod(shape)
    if name in ("embed.weight", "head.weight"):
        return shape[0] * row_bytes(embed_codec(codec), shape[1])
    return prod(shape) // config.d_model * row_bytes(codec, config.d_model)
