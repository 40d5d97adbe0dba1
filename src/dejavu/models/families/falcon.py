"""Falcon: layer norms, RoPE, grouped K/V heads in one matrix with q, both branches from one input; also with ReLU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.models.config import ModelConfig
from dejavu.models.families.family import Family, Layout
from dejavu.models.families.hf import common_to_hf
from dejavu.models.families.options import Options, activation_options
from dejavu.models.families.rotary import rope_from_hf, rope_to_hf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_DEFAULTS = {"activation": "gelu", "layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048}
_LINEARS = ("q", "k", "v", "o", "up", "down")


def _config_from_hf(values: Mapping[str, object]) -> ModelConfig:
    options = Options(values, where="config.json", defaults=_DEFAULTS)
    options.require("alibi", False)
    options.require("parallel_attn", True)
    d_model, n_heads = options.integer("hidden_size"), options.integer("num_attention_heads")
    head_dim = d_model // max(n_heads, 1)
    if options.boolean("new_decoder_architecture"):
        n_kv_heads = options.integer("num_kv_heads", n_heads)
    else:
        n_kv_heads = 1 if options.boolean("multi_query", if_none=True) else n_heads
    return ModelConfig(
        family="falcon",
        vocab_size=options.integer("vocab_size"),
        d_model=d_model,
        n_layers=options.layers("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        d_ff=options.integer("ffn_hidden_size", 4 * d_model),
        **options.activation("activation"),
        gated=False,
        norm="layer",
        norm_eps=options.number("layer_norm_epsilon"),
        parallel_residual=True,
        tied_head=options.boolean("tie_word_embeddings", if_none=True),
        biases=_LINEARS if options.boolean("bias") else (),
        bos_token_id=next(iter(options.ids("bos_token_id")), None),
        eos_token_ids=options.ids("eos_token_id"),
        **rope_from_hf(options, head_dim),
    )


def _config_to_hf(config: ModelConfig) -> dict[str, object]:
    """In the form that holds all others: groups of heads, and a norm for each branch."""
    return {
        **common_to_hf(config, "falcon", "FalconForCausalLM"),
        **rope_to_hf(config),
        **activation_options(config, "activation"),
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 2,
        "num_kv_heads": config.n_kv_heads,
        "ffn_hidden_size": config.d_ff,
        "layer_norm_epsilon": config.norm_eps,
        "bias": "q" in config.biases,
        "alibi": False,
    }


def _fused_by_group(part: slice) -> Callable[[ModelConfig], NDArray[np.int64]]:
    """Rows of a part of a matrix laid out [n_kv_heads, q heads of the group + k + v, head_dim]."""

    def rows(config: ModelConfig) -> NDArray[np.int64]:
        in_group = config.n_heads // config.n_kv_heads + 2
        order = np.arange(config.n_kv_heads * in_group * config.head_dim, dtype=np.int64)
        return order.reshape(config.n_kv_heads, in_group, -1)[:, part].ravel()

    return rows


_HF = Layout(
    {
        "embed": "{p}word_embeddings",
        "attn_norm": ("{p}h.{i}.ln_attn", "{p}h.{i}.input_layernorm"),
        "q": "{p}h.{i}.self_attention.query_key_value",
        "k": "{p}h.{i}.self_attention.query_key_value",
        "v": "{p}h.{i}.self_attention.query_key_value",
        "o": "{p}h.{i}.self_attention.dense",
        "mlp_norm": ("{p}h.{i}.ln_mlp", "{p}h.{i}.input_layernorm"),
        "up": "{p}h.{i}.mlp.dense_h_to_4h",
        "down": "{p}h.{i}.mlp.dense_4h_to_h",
        "final_norm": "{p}ln_f",
        "head": "lm_head",
    },
    prefixes=("transformer.", ""),
    rows={
        "q": _fused_by_group(slice(None, -2)),
        "k": _fused_by_group(slice(-2, -1)),
        "v": _fused_by_group(slice(-1, None)),
    },
    ignored=(r"\.rotary_emb\.inv_freq$",),
)

FAMILIES = (
    Family(
        name="falcon",
        model_types=("falcon",),
        hf_architectures=("FalconForCausalLM",),
        config_from_hf=_config_from_hf,
        config_to_hf=_config_to_hf,
        hf=_HF,
    ),
)
