"""Parameters and bytes by part."""

from __future__ import annotations

import pytest

from dejavu.codecs import CODECS, GROUP, encode
from dejavu.inventory import PARTS, inventory, kv_bytes_per_token, part_of, row_bytes
from dejavu.models.config import ModelConfig

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
    mlp = parts["mlp"].bytes
    assert mlp == {
        "f32": 4 * counts["mlp"],
        "bf16": 2 * counts["mlp"],
        "int8": counts["mlp"] * 34 // 32,
        "int4": counts["mlp"] * 20 // 32,
    }
    assert parts["embedding"].bytes["int4"] == parts["embedding"].bytes["int8"] == 49152 * 576 * 34 // 32
    assert set(parts["norms"].bytes.values()) == {4 * 61 * 576}


@pytest.mark.parametrize("width", [1, 31, 32, 33, 576])
def test_row_bytes_match_the_codecs(width: int) -> None:
    import numpy as np

    rows = np.random.default_rng(width).normal(size=(1, width)).astype(np.float32)
    for codec in CODECS:
        encoded = encode(codec, rows)
        packed = encoded.codes.nbytes // (2 if codec == "int4" else 1)
        for part in (encoded.scales, encoded.mins):
            packed += 0 if part is None else part.nbytes
        assert row_bytes(codec, width) == packed
    assert GROUP == 32


def test_kv_bytes() -> None:
    assert kv_bytes_per_token(SMOLLM2, "f16") == 2 * 30 * 3 * 64 * 2
    assert kv_bytes_per_token(SMOLLM2, "f32") == 2 * kv_bytes_per_token(SMOLLM2, "f16")
    assert kv_bytes_per_token(SMOLLM2, "int8") == 2 * 30 * 3 * (64 + 4)


@pytest.mark.parametrize(
    ("name", "part"),
    [
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
