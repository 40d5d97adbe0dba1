"""BLOOM: layer norms (one on the embedding too), ALiBi, tanh-GELU, biases everywhere, q/k/v in one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dejavu.models.config import ModelConfig
from dejavu.models.families.family import Family, Layout, fused_by_head, fused_by_part
from dejavu.models.families.gguf import dimensions_from_gguf, dimensions_to_gguf
from dejavu.models.families.hf import common_to_hf
from dejavu.models.families.options import Options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dejavu.models.weights import RawTensors

_CONTEXT = 2048  # what BLOOM was trained with; ALiBi itself sets no limit
_COMMON: dict[str, Any] = {
    "family": "bloom",
    "activation": "gelu_tanh",
    "gated": False,
    "norm": "layer",
    "embed_norm": True,
    "position": "alibi",
    "biases": ("q", "k", "v", "o", "up", "down"),
}


def _config_from_hf(values: Mapping[str, object]) -> ModelConfig:
    options = Options(values, where="config.json", defaults={"layer_norm_epsilon": 1e-5})
    options.require("apply_residual_connection_post_layernorm", False)
    # Published configs use either name of these three.
    d_model = options.integer("n_embed" if options.has("n_embed") else "hidden_size")
    n_layers = options.layers("n_layer" if options.has("n_layer") else "num_hidden_layers")
    n_heads = options.integer("n_head" if options.has("n_head") else "num_attention_heads")
    return ModelConfig(
        **_COMMON,
        vocab_size=options.integer("vocab_size"),
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // max(n_heads, 1),
        d_ff=4 * d_model,
        max_context=options.integer("seq_length", _CONTEXT),
        norm_eps=options.number("layer_norm_epsilon"),
        tied_head=options.boolean("tie_word_embeddings", if_none=True),
        bos_token_id=next(iter(options.ids("bos_token_id")), None),
        eos_token_ids=options.ids("eos_token_id"),
    )


def _config_to_hf(config: ModelConfig) -> dict[str, object]:
    values = common_to_hf(config, "bloom", "BloomForCausalLM")
    values |= {"n_layer": values.pop("num_hidden_layers"), "n_head": values.pop("num_attention_heads")}
    return values | {"seq_length": config.max_context, "layer_norm_epsilon": config.norm_eps}


def _config_from_gguf(values: Mapping[str, object], tensors: RawTensors) -> ModelConfig:
    options = Options(values, where="GGUF metadata", prefix="bloom.")
    options.require("attention.max_alibi_bias", 8, 8.0)
    config = ModelConfig(
        **_COMMON,
        **dimensions_from_gguf(options, values, tensors),
        max_context=options.integer("context_length"),
        norm_eps=options.number("attention.layer_norm_epsilon"),
    )
    options.refuse_unread()
    return config


def _config_to_gguf(config: ModelConfig) -> tuple[str, dict[str, object]]:
    return "bloom", dimensions_to_gguf(config)


_HF = Layout(
    {
        "embed": "{p}word_embeddings",
        "embed.norm": "{p}word_embeddings_layernorm",
        "attn_norm": "{p}h.{i}.input_layernorm",
        "q": "{p}h.{i}.self_attention.query_key_value",
        "k": "{p}h.{i}.self_attention.query_key_value",
        "v": "{p}h.{i}.self_attention.query_key_value",
        "o": "{p}h.{i}.self_attention.dense",
        "mlp_norm": "{p}h.{i}.post_attention_layernorm",
        "up": "{p}h.{i}.mlp.dense_h_to_4h",
        "down": "{p}h.{i}.mlp.dense_4h_to_h",
        "final_norm": "{p}ln_f",
        "head": "lm_head",
    },
    prefixes=("transformer.", ""),
    rows={"q": fused_by_head(0), "k": fused_by_head(1), "v": fused_by_head(2)},
)
_GGUF = Layout(
    {
        "embed": "token_embd",
        "embed.norm": "token_embd_norm",
        "attn_norm": "blk.{i}.attn_norm",
        "q": "blk.{i}.attn_qkv",
        "k": "blk.{i}.attn_qkv",
        "v": "blk.{i}.attn_qkv",
        "o": "blk.{i}.attn_output",
        "mlp_norm": "blk.{i}.ffn_norm",
        "up": "blk.{i}.ffn_up",
        "down": "blk.{i}.ffn_down",
        "final_norm": "output_norm",
        "head": "output",
    },
    rows={"q": fused_by_part(0), "k": fused_by_part(1), "v": fused_by_part(2)},
)

FAMILIES = (
    Family(
        name="bloom",
        model_types=("bloom",),
        hf_architectures=("BloomForCausalLM",),
        config_from_hf=_config_from_hf,
        config_to_hf=_config_to_hf,
        hf=_HF,
        gguf_architectures=("bloom",),
        config_from_gguf=_config_from_gguf,
        config_to_gguf=_config_to_gguf,
        gguf=_GGUF,
    ),
)
