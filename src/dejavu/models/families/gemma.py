"""Gemma 2 and 3 (text): scaled embeddings, four norms per layer, windows, softcaps or q/k norms."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from dejavu.models.config import ModelConfig, RopeScaling
from dejavu.models.families.family import Family, Layout
from dejavu.models.families.gguf import GGUF_IGNORED, GGUF_SOURCES, dimensions_from_gguf, dimensions_to_gguf
from dejavu.models.families.hf import common_to_hf
from dejavu.models.families.llama import HF_SOURCES
from dejavu.models.families.options import Options
from dejavu.models.families.rotary import (
    check_base,
    rope_from_gguf,
    rope_from_hf,
    rope_to_gguf,
    scaling_from_hf,
    scaling_to_hf,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dejavu.models.weights import RawTensors

# Published Gemma 3 configs leave out what equals these.
_DEFAULTS: dict[str, dict[str, object]] = {
    "gemma2": {
        "max_position_embeddings": 8192,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
    "gemma3_text": {"max_position_embeddings": 131072, "vocab_size": 262208},
}
_SHARED_DEFAULTS: dict[str, object] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "vocab_size": 256000,
    "rms_norm_eps": 1e-6,
}
_COMMON: dict[str, Any] = {"activation": "gelu_tanh", "post_norms": True}
_PERIOD = {"gemma2": 2, "gemma3_text": 6}
"""Every so many layers one attends to everything; the others have a window."""
_LOCAL_THETA = 10000.0
_GLOBAL_THETA = 1_000_000.0
# Layers of the largest ones, which scale attention by d_model / n_heads, not head_dim. GGUF does not say so.
_LARGEST = {"gemma2": 46, "gemma3_text": 62}


def _config_from_hf(values: Mapping[str, object], *, kind: str) -> ModelConfig:
    text = values.get("text_config")  # of Gemma 3 with images
    if isinstance(text, dict):
        outer = ("bos_token_id", "eos_token_id", "tie_word_embeddings")
        values = {**{name: values[name] for name in outer if name in values}, **text}
    options = Options(values, where="config.json", defaults={**_SHARED_DEFAULTS, **_DEFAULTS[kind]})
    options.require("use_bidirectional_attention", False)
    options.require("hidden_activation", "gelu_pytorch_tanh")
    if kind == "gemma3_text":
        options.require("attn_logit_softcapping")
    d_model, n_layers = options.integer("hidden_size"), options.layers("num_hidden_layers")
    n_heads, head_dim = options.integer("num_attention_heads"), options.integer("head_dim")
    period = options.integer("sliding_window_pattern", _PERIOD[kind])
    layers = tuple(bool((i + 1) % max(period, 1)) for i in range(n_layers))
    layers = options.windows(n_layers, layers)
    window = options.integer("sliding_window", 0)
    if any(layers) and not window:
        options.refuse("sliding_window", "its layers with sliding_attention need one")
    return ModelConfig(
        **_COMMON,
        family=kind,
        vocab_size=options.integer("vocab_size"),
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=options.integer("num_key_value_heads", n_heads),
        head_dim=head_dim,
        d_ff=options.integer("intermediate_size"),
        norm_eps=options.number("rms_norm_eps"),
        embed_scale=math.sqrt(d_model),
        attn_scale=options.positive("query_pre_attn_scalar") ** -0.5,
        attn_softcap=options.number("attn_logit_softcapping", 0.0),
        logit_softcap=options.number("final_logit_softcapping", 0.0),
        tied_head=options.boolean("tie_word_embeddings", if_none=True),
        biases=("q", "k", "v", "o") if options.boolean("attention_bias") else (),
        qk_norm=kind == "gemma3_text",
        sliding_window=window if any(layers) else 0,
        window_layers=layers if any(layers) else (),
        bos_token_id=next(iter(options.ids("bos_token_id")), None),
        eos_token_ids=options.ids("eos_token_id"),
        **(_rope3(options) if kind == "gemma3_text" else rope_from_hf(options, head_dim)),
    )


def _rope3(options: Options) -> dict[str, Any]:
    """Gemma 3: one base and scaling for full attention, another base, unscaled, for windows."""
    groups = options.group("rope_parameters")
    full, local = (
        Options(groups, where="config.json: rope_parameters").group(name)
        for name in ("full_attention", "sliding_attention")
    )
    if set(groups) - {"full_attention", "sliding_attention"}:
        options.refuse("rope_parameters", "full_attention and sliding_attention are expected")
    if local.get("rope_type", "default") != "default":
        options.refuse("rope_parameters", "scaling of sliding_attention is not supported")
    full = {**full, **options.group("rope_scaling")}
    context = options.integer("max_position_embeddings")
    scaling, extended = scaling_from_hf(options, "rope_scaling", full, context)
    theta = Options(full, where="config.json: full_attention").positive(
        "rope_theta", options.positive("rope_theta", _GLOBAL_THETA)
    )
    local_theta = Options(local, where="config.json: sliding_attention").positive(
        "rope_theta", options.positive("rope_local_base_freq", _LOCAL_THETA)
    )
    for kind, base in ((scaling, theta), (RopeScaling(), local_theta)):
        check_base(kind, base, options.integer("head_dim"), options, "rope_parameters")
    return {
        "rope_theta": theta,
        "rope_local_theta": local_theta,
        "rope_scaling": scaling,
        "max_context": context if scaling.type == "linear" else extended,
    }


def _config_to_hf(config: ModelConfig, *, kind: str) -> dict[str, object]:
    windows = [config.windowed(i) for i in range(config.n_layers)]
    values = common_to_hf(config, kind, "Gemma2ForCausalLM" if kind == "gemma2" else "Gemma3ForCausalLM")
    values |= {
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": config.norm_eps,
        "query_pre_attn_scalar": round(config.scale**-2),
        "attn_logit_softcapping": config.attn_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
        "attention_bias": "q" in config.biases,
        "sliding_window": config.sliding_window or None,
        "layer_types": ["sliding_attention" if windowed else "full_attention" for windowed in windows],
        "max_position_embeddings": config.max_context,
        "rope_theta": config.rope_theta,
    }
    if kind == "gemma3_text":
        values["rope_local_base_freq"] = config.rope_local_theta
    if config.rope_scaling.type != "default":
        values["rope_scaling"] = scaling_to_hf(config.rope_scaling)
    return values


def _config_from_gguf(values: Mapping[str, object], tensors: RawTensors, *, kind: str) -> ModelConfig:
    options = Options(values, where="GGUF metadata", prefix=kind.removesuffix("_text") + ".")
    sizes = dimensions_from_gguf(options, values, tensors)
    rope = rope_from_gguf(options, tensors, sizes["head_dim"])
    if kind == "gemma3_text":
        rope["rope_theta"] = options.positive("rope.freq_base", _GLOBAL_THETA)
        rope["rope_local_theta"] = options.positive("rope.freq_base_swa", _LOCAL_THETA)
    period = options.integer("attention.sliding_window_pattern", _PERIOD[kind])
    largest = sizes["n_layers"] == _LARGEST[kind]
    config = ModelConfig(
        **_COMMON,
        **sizes,
        **rope,
        family=kind,
        norm_eps=options.number("attention.layer_norm_rms_epsilon"),
        embed_scale=math.sqrt(sizes["d_model"]),
        attn_scale=math.sqrt(sizes["n_heads"] / max(sizes["d_model"], 1)) if largest else 0.0,
        attn_softcap=options.number("attn_logit_softcapping", 50.0 if kind == "gemma2" else 0.0),
        logit_softcap=options.number("final_logit_softcapping", 30.0 if kind == "gemma2" else 0.0),
        qk_norm=kind == "gemma3_text",
        sliding_window=options.integer("attention.sliding_window"),
        window_layers=tuple(bool((i + 1) % max(period, 1)) for i in range(sizes["n_layers"])),
    )
    options.refuse_unread()
    return config


def _config_to_gguf(config: ModelConfig, *, kind: str) -> tuple[str, dict[str, object]]:
    values = dimensions_to_gguf(config) | rope_to_gguf(config)
    values["attention.sliding_window"] = config.sliding_window
    for name, cap in (("attn", config.attn_softcap), ("final", config.logit_softcap)):
        if cap or kind == "gemma2":
            values[f"{name}_logit_softcapping"] = cap
    if kind == "gemma3_text":
        values["rope.freq_base_swa"] = config.rope_local_theta
    return kind.removesuffix("_text"), values


_HF = Layout(
    {
        **HF_SOURCES,
        "attn_post_norm": "{p}layers.{i}.post_attention_layernorm",
        "mlp_norm": "{p}layers.{i}.pre_feedforward_layernorm",
        "mlp_post_norm": "{p}layers.{i}.post_feedforward_layernorm",
        "head": ("lm_head", "language_model.lm_head"),
    },
    prefixes=("model.", "language_model.model.", "model.language_model.", ""),
    norm_offset=1.0,
    ignored=(r"\.rotary_emb\.inv_freq$", r"(^|\.)vision_tower\.", r"(^|\.)multi_modal_projector\."),
)
_GGUF = Layout(
    {
        **GGUF_SOURCES,
        "attn_post_norm": "blk.{i}.post_attention_norm",
        "mlp_post_norm": "blk.{i}.post_ffw_norm",
    },
    ignored=GGUF_IGNORED,  # the norms' weights are stored with the one added
)

FAMILIES = tuple(
    Family(
        name=kind,
        model_types=model_types,
        hf_architectures=architectures,
        config_from_hf=partial(_config_from_hf, kind=kind),
        config_to_hf=partial(_config_to_hf, kind=kind),
        hf=_HF,
        gguf_architectures=(kind.removesuffix("_text"),),
        config_from_gguf=partial(_config_from_gguf, kind=kind),
        config_to_gguf=partial(_config_to_gguf, kind=kind),
        gguf=_GGUF,
    )
    for kind, model_types, architectures in (
        ("gemma2", ("gemma2",), ("Gemma2ForCausalLM",)),
        ("gemma3_text", ("gemma3_text", "gemma3"), ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")),
    )
)
