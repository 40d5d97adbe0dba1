"""Tiny random Hugging Face models: one per family and option, so that every code path meets transformers."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Case:
    """A model to build: class names of transformers and the arguments of its config."""

    config: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    tokens: int = 40
    shard: str | None = None
    dtype: str = "float32"

    @property
    def vocab_size(self) -> int:
        return int(self.options["vocab_size"])


def _llama(**options: Any) -> Case:
    base = {
        "vocab_size": 97,
        "hidden_size": 60,
        "intermediate_size": 84,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    return Case("LlamaConfig", "LlamaForCausalLM", base | options)


def _like_llama(name: str, **options: Any) -> Case:
    return Case(f"{name}Config", f"{name}ForCausalLM", _llama().options | options)


def _scaled(rope_type: str, context: int = 128, **options: Any) -> Case:
    rope = {"rope_type": rope_type, "rope_theta": 500.0, **options}
    return _llama(rope_parameters=rope, max_position_embeddings=context, tie_word_embeddings=False)


def _gemma(name: str, text: str = "", **options: Any) -> Case:
    base = {
        "head_dim": 14,
        "num_hidden_layers": 3,
        "query_pre_attn_scalar": 20,
        "sliding_window": 9,
        "pad_token_id": 0,
    }
    case = _like_llama(name, **(base | options))
    return dataclasses.replace(case, config=f"{name}{text}Config")


def _opt(**options: Any) -> Case:
    base = {
        "vocab_size": 89,
        "hidden_size": 60,
        "ffn_dim": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "max_position_embeddings": 48,
        "word_embed_proj_dim": 60,
    }
    return Case("OPTConfig", "OPTForCausalLM", base | options)


def _bloom(**options: Any) -> Case:
    base = {"vocab_size": 101, "hidden_size": 48, "n_layer": 2, "n_head": 6}
    return Case("BloomConfig", "BloomForCausalLM", base | options)


def _neox(**options: Any) -> Case:
    base = {
        "vocab_size": 91,
        "hidden_size": 64,
        "intermediate_size": 110,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    return Case("GPTNeoXConfig", "GPTNeoXForCausalLM", base | options)


def _falcon(**options: Any) -> Case:
    base = {
        "vocab_size": 93,
        "hidden_size": 64,
        "ffn_hidden_size": 110,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "max_position_embeddings": 64,
    }
    return Case("FalconConfig", "FalconForCausalLM", base | options)


CASES: dict[str, Case] = {
    "llama": _llama(),
    "llama-biases": _llama(
        attention_bias=True, mlp_bias=True, tie_word_embeddings=False, num_key_value_heads=6
    ),
    "llama-head-dim": _llama(head_dim=16, rms_norm_eps=1e-3, num_key_value_heads=1),
    "llama-long": dataclasses.replace(_llama(max_position_embeddings=512), tokens=300),
    "llama-blocks": _llama(
        hidden_size=500, num_attention_heads=5, num_key_value_heads=5, num_hidden_layers=1
    ),
    "llama-tail": _llama(
        hidden_size=1100, num_attention_heads=11, num_key_value_heads=11, num_hidden_layers=1
    ),
    "llama-relu": _llama(hidden_act="relu", num_key_value_heads=3),
    "llama-relu2": _llama(hidden_act="relu2", mlp_bias=True),
    "llama-sharded": dataclasses.replace(_llama(tie_word_embeddings=False), shard="40KB"),
    "llama-bf16": dataclasses.replace(_llama(), dtype="bfloat16"),
    "llama-f16": dataclasses.replace(_llama(), dtype="float16"),
    "rope-linear": _scaled("linear", factor=3.0),
    "rope-dynamic": _scaled("dynamic", context=24, factor=4.0),
    "rope-llama3": _scaled(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    ),
    "rope-yarn": _scaled("yarn", context=16, factor=4.0, original_max_position_embeddings=16),
    "rope-yarn-mscale": _scaled(
        "yarn",
        context=64,
        factor=4.0,
        original_max_position_embeddings=16,
        beta_fast=8.0,
        beta_slow=0.5,
        mscale=0.7,
        mscale_all_dim=0.3,
        truncate=False,
    ),
    "rope-yarn-factor": _scaled(
        "yarn", factor=8.0, original_max_position_embeddings=16, attention_factor=1.25
    ),
    "mistral": _like_llama("Mistral", sliding_window=None, num_key_value_heads=3),
    "mistral-window": _like_llama("Mistral", sliding_window=7, tie_word_embeddings=False),
    "qwen2": _like_llama("Qwen2"),
    "qwen2-window": _like_llama(
        "Qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1, num_hidden_layers=3
    ),
    "qwen3": _like_llama("Qwen3", head_dim=24, tie_word_embeddings=False),
    "qwen3-biases": _like_llama("Qwen3", head_dim=14, attention_bias=True, num_key_value_heads=6),
    "gemma2": _gemma("Gemma2", attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma2-plain": _gemma("Gemma2", attn_logit_softcapping=None, final_logit_softcapping=None),
    "gemma3": _gemma("Gemma3", "Text", final_logit_softcapping=3.0, num_hidden_layers=7),
    "gemma3-scaled": _gemma(
        "Gemma3",
        "Text",
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
        },
    ),
    "opt": _opt(),
    "opt-bare": _opt(enable_bias=False, _remove_final_layer_norm=True, tie_word_embeddings=False),
    "opt-350m": _opt(do_layer_norm_before=False, word_embed_proj_dim=36),
    "opt-gelu": _opt(activation_function="gelu", word_embed_proj_dim=70),
    "bloom": _bloom(),
    "bloom-untied": _bloom(n_head=8, tie_word_embeddings=False, layer_norm_epsilon=1e-3),
    "falcon": _falcon(),
    "falcon-groups": _falcon(new_decoder_architecture=True, num_kv_heads=2, activation="relu"),
    "falcon-biases": _falcon(multi_query=False, bias=True, activation="relu", tie_word_embeddings=False),
    "neox": _neox(),
    "neox-serial": _neox(
        use_parallel_residual=False,
        attention_bias=False,
        hidden_act="gelu_new",
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 1.0},
    ),
    "neox-dynamic": _neox(
        max_position_embeddings=24,
        rope_parameters={
            "rope_type": "dynamic",
            "rope_theta": 700.0,
            "partial_rotary_factor": 0.5,
            "factor": 2.0,
        },
    ),
}


def build(case: Case, folder: Path, seed: int = 0) -> None:
    """Save a model whose every parameter is random: fresh norms are 1 and biases 0: that hides mistakes."""
    import torch
    import transformers

    config = getattr(transformers, case.config)(**case.options, bos_token_id=1, eos_token_id=2)
    config.architectures = [case.model]
    generator = torch.Generator().manual_seed(seed)
    model = getattr(transformers, case.model)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter += 0.2 * noise
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    model.to(getattr(torch, case.dtype))
    model.save_pretrained(folder, **({"max_shard_size": case.shard} if case.shard else {}))


def prompt(case: Case, seed: int = 0) -> NDArray[np.int32]:
    """Random token ids [case.tokens]."""
    return np.random.default_rng(seed).integers(0, case.vocab_size, case.tokens).astype(np.int32)


def transformers_logits(folder: Path, tokens: NDArray[np.int32], prefilled: int) -> NDArray[np.float32]:
    """Logits [t, vocab] of eager float32 attention: the first tokens in one call, the others one by one."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    known = inspect.signature(type(model).forward).parameters
    name = "cache" if "cache" in known else "past_key_values"  # before transformers 5.24
    cache = {name: transformers.DynamicCache(config=model.config)}
    parts = [ids[:, :prefilled], *ids[:, prefilled:].split(1, dim=1)]
    with torch.no_grad():
        logits = [model(part, **cache, use_cache=True).logits[0] for part in parts if part.shape[1]]
    return torch.cat(logits).numpy()


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """max |found - expected| / max |expected|."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())
