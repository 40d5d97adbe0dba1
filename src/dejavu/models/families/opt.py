"""OPT, 125m to 66b: layer norms, learned positions, ReLU; the 350m normalises after branches and projects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dejavu.models.config import ModelConfig
from dejavu.models.families.family import Family, Layout
from dejavu.models.families.hf import common_to_hf
from dejavu.models.families.options import Options, activation_options

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULTS = {"activation_function": "relu", "max_position_embeddings": 2048}
_POSITION_OFFSET = 2  # rows of the position table that no token uses


def _config_from_hf(values: Mapping[str, object]) -> ModelConfig:
    options = Options(values, where="config.json", defaults=_DEFAULTS)
    options.require("layer_norm_elementwise_affine", True)
    d_model, n_heads = options.integer("hidden_size"), options.integer("num_attention_heads")
    d_embed = options.integer("word_embed_proj_dim", d_model)
    pre_norm = options.boolean("do_layer_norm_before", if_none=True)
    biases = ("q", "k", "v", "o", "up", "down") if options.boolean("enable_bias", if_none=True) else ()
    return ModelConfig(
        family="opt",
        vocab_size=options.integer("vocab_size"),
        d_model=d_model,
        n_layers=options.layers("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // max(n_heads, 1),
        d_ff=options.integer("ffn_dim"),
        max_context=options.integer("max_position_embeddings"),
        **options.activation("activation_function"),
        gated=False,
        norm="layer",
        pre_norm=pre_norm,
        final_norm=pre_norm and not options.boolean("_remove_final_layer_norm"),
        d_embed=0 if d_embed == d_model else d_embed,
        tied_head=options.boolean("tie_word_embeddings", if_none=True),
        biases=biases,
        position="learned",
        position_offset=_POSITION_OFFSET,
        bos_token_id=next(iter(options.ids("bos_token_id")), None),
        eos_token_ids=options.ids("eos_token_id"),
    )


def _config_to_hf(config: ModelConfig) -> dict[str, object]:
    return common_to_hf(config, "opt", "OPTForCausalLM") | {
        "ffn_dim": config.d_ff,
        "word_embed_proj_dim": config.embed_dim,
        "max_position_embeddings": config.max_context,
        **activation_options(config, "activation_function"),
        "do_layer_norm_before": config.pre_norm,
        "_remove_final_layer_norm": config.pre_norm and not config.final_norm,
        "enable_bias": bool(config.biases),
    }


_HF = Layout(
    {
        "embed": "{p}embed_tokens",
        "embed.position": "{p}embed_positions.weight",
        "embed.proj_in": "{p}project_in.weight",
        "embed.proj_out": "{p}project_out.weight",
        "attn_norm": "{p}layers.{i}.self_attn_layer_norm",
        "q": "{p}layers.{i}.self_attn.q_proj",
        "k": "{p}layers.{i}.self_attn.k_proj",
        "v": "{p}layers.{i}.self_attn.v_proj",
        "o": "{p}layers.{i}.self_attn.out_proj",
        "mlp_norm": "{p}layers.{i}.final_layer_norm",
        "up": "{p}layers.{i}.fc1",
        "down": "{p}layers.{i}.fc2",
        "final_norm": "{p}final_layer_norm",
        "head": "lm_head",
    },
    prefixes=("model.decoder.", "decoder."),
)

FAMILIES = (
    Family(
        name="opt",
        model_types=("opt",),
        hf_architectures=("OPTForCausalLM",),
        config_from_hf=_config_from_hf,
        config_to_hf=_config_to_hf,
        hf=_HF,
    ),
)
