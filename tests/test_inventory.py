"""Parameters and bytes by part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dejavu.engine import synthetic
from dejavu.inventory import PARTS, inventory, part_of
from dejavu.models.config import ModelConfig

if TYPE_CHECKING:
    from dejavu.codecs import Codec

SMOLLM2 = ModelConfig(
    family="llama",
    vocab_size=49152,
    d_model=576,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    d_ff=1536,
    max_context=8192,
)


def test_smollm2() -> None:
    parts = inventory(SMOLLM2)
    assert tuple(parts) == PARTS
    counts = {part: size.parameters for part, size in parts.items()}
    assert counts["embedding"] == 49152 * 576
    assert counts["head"] == 0
    assert counts["attention"] == 30 * (2 * 576 * 576 + 2 * 192 * 576)
    assert counts["mlp"] == 30 * 3 * 576 * 1536
    assert counts["norms"] == 61 * 576
    assert sum(counts.values()) == 134_515_008
    assert set(parts["norms"].bytes.values()) == {4 * 61 * 576}
    for codec, bits in (("f32", 32), ("bf16", 16), ("int8", 8 + 16 / 32), ("int4", 4 + 32 / 32)):
        more = 3.5 / 8 if codec == "int4" else 0  # o, and the MLPs of the first and the last layer, are int8
        for part, finer in (("attention", 30 * 576 * 576), ("mlp", 2 * 3 * 576 * 1536)):
            # bundles are rounded up to 64 bytes
            assert parts[part].bytes[codec] == pytest.approx(counts[part] * bits / 8 + finer * more, rel=0.02)
    assert parts["embedding"].bytes["int4"] == parts["embedding"].bytes["int8"]


@pytest.mark.parametrize("codec", ["f32", "int4"])
def test_bytes_are_those_of_a_packed_model(codec: Codec) -> None:
    config = ModelConfig(
        family="opt",
        vocab_size=100,
        d_model=40,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=10,
        d_ff=70,
        max_context=16,
        norm="layer",
        gated=False,
        tied_head=False,
        position="learned",
        position_offset=2,
        biases=("q", "down", "head"),
    )
    executor = synthetic(config, codec, threads=1)
    parts = inventory(config)
    assert sum(part.bytes[codec] for part in parts.values()) == executor.packed.nbytes
    touched = executor.touched_bytes(0)
    executor.close()
    biases = 4 * (2 * 40 + 2 * 40)
    assert sum(parts[part].bytes[codec] for part in ("attention", "mlp")) == (
        touched["attention"] + touched["mlp"] + biases
    )


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("layers.0.heads", "attention"),
        ("layers.0.kv", "attention"),
        ("layers.11.mlp", "mlp"),
        ("embed.weight", "embedding"),
        ("embed.norm.bias", "norms"),
        ("final_norm.weight", "norms"),
        ("head.bias", "head"),
        ("layers.12.q.bias", "attention"),
        ("layers.0.q_norm.weight", "norms"),
        ("layers.0.attn_post_norm.weight", "norms"),
        ("layers.3.down.weight", "mlp"),
        ("layers.3.up.bias", "mlp"),
    ],
)
def test_part_of(name: str, part: str) -> None:
    assert part_of(name) == part
