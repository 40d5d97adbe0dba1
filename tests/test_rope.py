from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dejavu.models.alibi import alibi_slopes
from dejavu.models.families import family_of_hf
from dejavu.models.rope import attention_factor, frequencies, tables
from tolerances import TOLERANCES

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("length", [0, 100, 5000, 40000])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.5},
        {"rope_type": "dynamic", "factor": 4.0},
        LLAMA3,
        YARN,
        YARN | {"truncate": False, "beta_fast": 20.0, "beta_slow": 2.0},
        YARN | {"mscale": 0.7, "mscale_all_dim": 0.2},
        YARN | {"attention_factor": 1.1},
    ],
)
def test_frequencies_equal_transformers(rope: dict[str, Any], length: int) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    sizes = {"hidden_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 1, "intermediate_size": 8}
    rope = rope | {"rope_theta": 500000.0}
    theirs = transformers.LlamaConfig(**sizes, max_position_embeddings=16384, rope_parameters=dict(rope))
    expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, seq_len=length or None)
    values = sizes | {"vocab_size": 5, "max_position_embeddings": 16384, "rope_parameters": rope}
    config = family_of_hf({"model_type": "llama"}).config_from_hf(values)
    error = np.abs(frequencies(config, length=length) / expected.numpy() - 1)
    assert error.max() <= TOLERANCES["rope_frequencies"]
    assert attention_factor(config) == pytest.approx(factor)
    cos, sin = tables(config, np.arange(3), length=length)
    assert cos[0] == pytest.approx(factor)
    assert not sin[0].any()


def test_context_of_scaled_models() -> None:
    sizes = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "vocab_size": 5,
        "max_position_embeddings": 16384,
    }

    def context(rope: dict[str, Any]) -> int:
        return (
            family_of_hf({"model_type": "llama"}).config_from_hf(sizes | {"rope_scaling": rope}).max_context
        )

    assert context({"type": "linear", "factor": 2.0}) == 32768
    assert context({"type": "dynamic", "factor": 2.0}) == 32768
    assert context(LLAMA3) == 16384
    assert context(YARN) == 16384
    assert context(YARN | {"original_max_position_embeddings": 16384}) == 65536


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12, 25, 112])
def test_alibi_slopes_equal_transformers(heads: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    expected = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1].numpy()
    assert alibi_slopes(heads) == pytest.approx(expected, rel=1e-6)
