"""Llama and its kin: Llama, SmolLM, Mistral, Qwen2, Qwen3.

RMS norms, RoPE, grouped K/V heads, a gated MLP. They differ in biases, sliding windows and q/k norms.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.models.config import ModelConfig
from dejavu.models.families.family import Family, Layout
from dejavu.models.families.gguf import (
    GGUF_IGNORED,
    GGUF_LINEARS,
    GGUF_SOURCES,
    dimensions_from_gguf,
    dimensions_to_gguf,
)
from dejavu.models.families.hf import common_to_hf
from dejavu.models.families.options import Options, activation_options
from dejavu.models.families.rotary import rope_from_gguf, rope_from_hf, rope_to_gguf, rope_to_hf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dejavu.models.weights import RawTensors

OTHER_ACTIVATION = "dejavu-"
"""Before the name of a GGUF architecture: its options say the activation. Other programs, which would take SiLU for
granted, do not know the name."""

_DEFAULTS: dict[str, dict[str, object]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}


def config_from_hf(values: Mapping[str, object], *, kind: str) -> ModelConfig:
    """Of llama, mistral, qwen2 or qwen3 (`kind`), and what is built on them."""
    defaults = {"hidden_act": "silu", "rms_norm_eps": 1e-6, **_DEFAULTS[kind]}
    options = Options(values, where="config.json", defaults=defaults)
    d_model, n_heads = options.integer("hidden_size"), options.integer("num_attention_heads")
    head_dim = options.integer("head_dim", d_model // max(n_heads, 1))
    n_layers = options.layers("num_hidden_layers")
    return ModelConfig(
        family=kind,
        vocab_size=options.integer("vocab_size"),
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=options.integer("num_key_value_heads", n_heads),
        head_dim=head_dim,
        d_ff=options.integer("intermediate_size"),
        **options.activation("hidden_act"),
        norm_eps=options.number("rms_norm_eps"),
        tied_head=options.boolean("tie_word_embeddings"),
        biases=_biases(options, kind),
        qk_norm=kind == "qwen3",
        bos_token_id=next(iter(options.ids("bos_token_id")), None),
        eos_token_ids=options.ids("eos_token_id"),
        **_windows(options, kind, n_layers),
        **rope_from_hf(options, head_dim),
    )


def _biases(options: Options, kind: str) -> tuple[str, ...]:
    if kind == "mistral":
        return ()
    if kind == "qwen2":
        return ("q", "k", "v")
    attention = ("q", "k", "v", "o") if options.boolean("attention_bias") else ()
    mlp = ("gate", "up", "down") if kind == "llama" and options.boolean("mlp_bias") else ()
    return attention + mlp


def _windows(options: Options, kind: str, n_layers: int) -> dict[str, Any]:
    """`sliding_window` and `window_layers`."""
    if kind == "llama":
        return {}
    if kind == "mistral":
        options.require("layer_types", ["full_attention"] * n_layers, ["sliding_attention"] * n_layers)
        window = options.integer("sliding_window", 0)
        return {"sliding_window": window, "window_layers": (True,) * n_layers} if window else {}
    window = options.integer("sliding_window", 4096) if options.boolean("use_sliding_window") else 0
    first = options.integer("max_window_layers", 28)
    layers = options.windows(n_layers, tuple(window > 0 and i >= first for i in range(n_layers)))
    if any(layers) and not window:
        options.refuse("layer_types", "sliding_attention needs use_sliding_window and a sliding_window")
    return {"sliding_window": window, "window_layers": layers} if any(layers) else {}


def config_to_hf(config: ModelConfig, *, kind: str, architecture: str) -> dict[str, object]:
    """The inverse of `config_from_hf`."""
    values = common_to_hf(config, kind, architecture) | rope_to_hf(config)
    values |= {
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        **activation_options(config, "hidden_act"),
        "rms_norm_eps": config.norm_eps,
    }
    if kind in ("llama", "qwen3"):
        values["attention_bias"] = "q" in config.biases
    if kind == "llama":
        values["mlp_bias"] = "gate" in config.biases
    if kind == "mistral":
        values["sliding_window"] = config.sliding_window or None
    if kind in ("qwen2", "qwen3"):
        windows = [config.windowed(i) for i in range(config.n_layers)]
        values |= {
            "use_sliding_window": any(windows),
            "sliding_window": config.sliding_window or None,
            "max_window_layers": windows.index(True) if any(windows) else config.n_layers,
            "layer_types": ["sliding_attention" if windowed else "full_attention" for windowed in windows],
        }
    return values


def config_from_gguf(values: Mapping[str, object], tensors: RawTensors, *, kind: str) -> ModelConfig:
    """As `config_from_hf`; options are those under the architecture's name."""
    options = Options(values, where="GGUF metadata", prefix=f"{values['general.architecture']}.")
    sizes = dimensions_from_gguf(options, values, tensors)
    names = set(tensors.names())
    window = options.integer("attention.sliding_window", 0)
    config = ModelConfig(
        family=kind,
        **sizes,
        **options.activation("hidden_act", "silu"),
        norm_eps=options.number("attention.layer_norm_rms_epsilon"),
        biases=tuple(name for name, source in GGUF_LINEARS.items() if source.format(i=0) + ".bias" in names),
        qk_norm=kind == "qwen3",
        sliding_window=window,
        window_layers=(True,) * sizes["n_layers"] if window else (),
        **rope_from_gguf(options, tensors, sizes["head_dim"]),
    )
    if kind == "llama" and config.rotary_dim:
        options.refuse("rope.dimension_count", f"only whole heads of {config.head_dim} dimensions are turned")
    options.refuse_unread()
    return config


def config_to_gguf(config: ModelConfig, *, kind: str) -> tuple[str, dict[str, object]]:
    """The inverse of reading GGUF's options: the architecture and its options."""
    values = dimensions_to_gguf(config) | rope_to_gguf(config)
    if config.sliding_window:
        values["attention.sliding_window"] = config.sliding_window
    if config.activation == "silu":
        return kind, values
    return OTHER_ACTIVATION + kind, values | activation_options(config, "hidden_act")


def _unpermute(heads: str) -> Callable[[ModelConfig], NDArray[np.int64]]:
    """Rows that undo GGUF's order of q and k, which puts the two of a RoPE pair side by side."""

    def rows(config: ModelConfig) -> NDArray[np.int64]:
        count = getattr(config, heads)
        order = np.arange(count * config.head_dim, dtype=np.int64)
        unpermuted: NDArray[np.int64] = order.reshape(count, -1, 2).swapaxes(1, 2).ravel()
        return unpermuted

    return rows


HF_SOURCES = {
    "embed": "{p}embed_tokens",
    "attn_norm": "{p}layers.{i}.input_layernorm",
    "q": "{p}layers.{i}.self_attn.q_proj",
    "k": "{p}layers.{i}.self_attn.k_proj",
    "v": "{p}layers.{i}.self_attn.v_proj",
    "o": "{p}layers.{i}.self_attn.o_proj",
    "q_norm": "{p}layers.{i}.self_attn.q_norm",
    "k_norm": "{p}layers.{i}.self_attn.k_norm",
    "mlp_norm": "{p}layers.{i}.post_attention_layernorm",
    "gate": "{p}layers.{i}.mlp.gate_proj",
    "up": "{p}layers.{i}.mlp.up_proj",
    "down": "{p}layers.{i}.mlp.down_proj",
    "final_norm": "{p}norm",
    "head": "lm_head",
}
_HF = Layout(HF_SOURCES, prefixes=("model.", ""), ignored=(r"\.rotary_emb\.inv_freq$",))
_GGUF = Layout(GGUF_SOURCES, ignored=GGUF_IGNORED)
GGUF_LLAMA = Layout(
    GGUF_SOURCES,
    rows={"q": _unpermute("n_heads"), "k": _unpermute("n_kv_heads")},
    ignored=GGUF_IGNORED,
)

FAMILIES = tuple(
    Family(
        name=kind,
        model_types=(kind,),
        hf_architectures=(architecture,),
        config_from_hf=partial(config_from_hf, kind=kind),
        config_to_hf=partial(config_to_hf, kind=kind, architecture=architecture),
        hf=_HF,
        gguf_architectures=() if kind == "mistral" else (kind, OTHER_ACTIVATION + kind),
        config_from_gguf=partial(config_from_gguf, kind=kind),
        config_to_gguf=partial(config_to_gguf, kind="llama" if kind == "mistral" else kind),
        gguf=gguf,
    )
    for kind, architecture, gguf in (
        ("llama", "LlamaForCausalLM", GGUF_LLAMA),
        ("mistral", "MistralForCausalLM", GGUF_LLAMA),  # llama in GGUF
        ("qwen2", "Qwen2ForCausalLM", _GGUF),
        ("qwen3", "Qwen3ForCausalLM", _GGUF),
    )
)
