"""GPT-NeoX, Pythia: layer norms, RoPE on part of a head, GELU, both branches from one input, fused q/k/v."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dejavu.models.config import ModelConfig
from dejavu.models.families.family import Family, Layout, fused_by_head, fused_by_part
from dejavu.models.families.gguf import GGUF_IGNORED, dimensions_from_gguf, dimensions_to_gguf
from dejavu.models.families.hf import common_to_hf
from dejavu.models.families.options import Options, activation_options
from dejavu.models.families.rotary import rope_from_gguf, rope_from_hf, rope_to_gguf, rope_to_hf

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dejavu.models.weights import RawTensors

_DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 2048}
_ATTENTION, _MLP = ("q", "k", "v", "o"), ("up", "down")


def _config_from_hf(values: Mapping[str, object]) -> ModelConfig:
    options = Options(values, where="config.json", defaults=_DEFAULTS)
    d_model, n_heads = options.integer("hidden_size"), options.integer("num_attention_heads")
    head_dim = d_model // max(n_heads, 1)
    attention = _ATTENTION if options.boolean("attention_bias", if_none=True) else ()
    return ModelConfig(
        family="gpt_neox",
        vocab_size=options.integer("vocab_size"),
        d_model=d_model,
        n_layers=options.layers("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=head_dim,
        d_ff=options.integer("intermediate_size"),
        **options.activation("hidden_act"),
        gated=False,
        norm="layer",
        norm_eps=options.number("layer_norm_eps"),
        parallel_residual=options.boolean("use_parallel_residual", if_none=True),
        tied_head=options.boolean("tie_word_embeddings"),
        biases=attention + _MLP,
        bos_token_id=next(iter(options.ids("bos_token_id")), None),
        eos_token_ids=options.ids("eos_token_id"),
        **rope_from_hf(
            options, head_dim, theta_name="rotary_emb_base", partial=0.25, partial_name="rotary_pct"
        ),
    )


def _config_to_hf(config: ModelConfig) -> dict[str, object]:
    rope = rope_to_hf(config)
    rope["rotary_emb_base"] = rope.pop("rope_theta")
    rope["rotary_pct"] = rope.pop("partial_rotary_factor", 1.0)
    values = common_to_hf(config, "gpt_neox", "GPTNeoXForCausalLM")
    return values | {
        "intermediate_size": config.d_ff,
        **activation_options(config, "hidden_act"),
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": "q" in config.biases,
        **rope,
    }


def _config_from_gguf(values: Mapping[str, object], tensors: RawTensors) -> ModelConfig:
    options = Options(values, where="GGUF metadata", prefix="gptneox.")
    sizes = dimensions_from_gguf(options, values, tensors)
    config = ModelConfig(
        family="gpt_neox",
        **sizes,
        activation="gelu",
        gated=False,
        norm="layer",
        norm_eps=options.number("attention.layer_norm_epsilon"),
        parallel_residual=options.boolean("use_parallel_residual", if_none=True),
        biases=_ATTENTION + _MLP,
        **rope_from_gguf(options, tensors, sizes["head_dim"]),
    )
    options.refuse_unread()
    return config


def _config_to_gguf(config: ModelConfig) -> tuple[str, dict[str, object]]:
    values = dimensions_to_gguf(config) | rope_to_gguf(config)
    return "gptneox", values | {"use_parallel_residual": config.parallel_residual}


_HF = Layout(
    {
        "embed": "{p}embed_in",
        "attn_norm": "{p}layers.{i}.input_layernorm",
        "q": "{p}layers.{i}.attention.query_key_value",
        "k": "{p}layers.{i}.attention.query_key_value",
        "v": "{p}layers.{i}.attention.query_key_value",
        "o": "{p}layers.{i}.attention.dense",
        "mlp_norm": "{p}layers.{i}.post_attention_layernorm",
        "up": "{p}layers.{i}.mlp.dense_h_to_4h",
        "down": "{p}layers.{i}.mlp.dense_4h_to_h",
        "final_norm": "{p}final_layer_norm",
        "head": ("embed_out", "lm_head"),
    },
    prefixes=("gpt_neox.", ""),
    rows={"q": fused_by_head(0), "k": fused_by_head(1), "v": fused_by_head(2)},
    ignored=(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",),
)
_GGUF = Layout(
    {
        "embed": "token_embd",
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
    ignored=GGUF_IGNORED,
)

FAMILIES = (
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        hf_architectures=("GPTNeoXForCausalLM",),
        config_from_hf=_config_from_hf,
        config_to_hf=_config_to_hf,
        hf=_HF,
        gguf_architectures=("gptneox",),
        config_from_gguf=_config_from_gguf,
        config_to_gguf=_config_to_gguf,
        gguf=_GGUF,
    ),
)
