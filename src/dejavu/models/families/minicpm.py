"""MiniCPM and MiniCPM-S: Llama with scaled embeddings, branches and logits.

The scales of branches and logits are folded into o, down and the last norm.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from dejavu.models.families.family import Family, Layout
from dejavu.models.families.llama import (
    GGUF_LLAMA,
    HF_SOURCES,
    OTHER_ACTIVATION,
    config_from_gguf,
    config_from_hf,
    config_to_gguf,
    config_to_hf,
)
from dejavu.models.families.options import Options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import RawTensors

_DEFAULTS = {"scale_emb": 1, "scale_depth": 1, "dim_model_base": 1, "tie_word_embeddings": True}


def _config_from_hf(values: Mapping[str, object]) -> ModelConfig:
    values = {**_DEFAULTS, **values}
    options = Options(values, where="config.json")
    options.require("num_experts", 0)
    options.require("sparse_config")
    scale = options.positive("scale_emb")
    return dataclasses.replace(config_from_hf(values, kind="llama"), family="minicpm", embed_scale=scale)


def _scales_from_hf(values: Mapping[str, object]) -> dict[str, float]:
    options = Options(values, where="config.json", defaults=_DEFAULTS)
    branch = options.number("scale_depth") / math.sqrt(max(options.layers("num_hidden_layers"), 1))
    logits = options.positive("dim_model_base") / max(options.integer("hidden_size"), 1)
    return {"o": branch, "down": branch, "final_norm": logits}


def _config_to_hf(config: ModelConfig) -> dict[str, object]:
    return config_to_hf(config, kind="llama", architecture="MiniCPMForCausalLM") | {
        "model_type": "minicpm",
        "scale_emb": config.embed_scale,
        "scale_depth": math.sqrt(config.n_layers),  # the weights have these two in them
        "dim_model_base": config.d_model,
    }


_GGUF_SCALES = ("embedding_scale", "residual_scale", "logit_scale")


def _config_from_gguf(values: Mapping[str, object], tensors: RawTensors) -> ModelConfig:
    options = _gguf_options(values)
    others = {key: value for key, value in values.items() if not key.endswith(_GGUF_SCALES)}
    config = config_from_gguf(others, tensors, kind="llama")
    return dataclasses.replace(config, family="minicpm", embed_scale=options.positive("embedding_scale"))


def _scales_from_gguf(values: Mapping[str, object]) -> dict[str, float]:
    options = _gguf_options(values)
    branch = options.number("residual_scale")
    return {"o": branch, "down": branch, "final_norm": 1 / options.positive("logit_scale")}


def _gguf_options(values: Mapping[str, object]) -> Options:
    return Options(values, where="GGUF metadata", prefix=f"{values['general.architecture']}.")


def _config_to_gguf(config: ModelConfig) -> tuple[str, dict[str, object]]:
    arch, values = config_to_gguf(config, kind="minicpm")
    return arch, values | dict(zip(_GGUF_SCALES, (config.embed_scale, 1.0, 1.0), strict=True))


FAMILIES = (
    Family(
        name="minicpm",
        model_types=("minicpm",),
        hf_architectures=("MiniCPMForCausalLM",),
        config_from_hf=_config_from_hf,
        config_to_hf=_config_to_hf,
        hf=Layout(HF_SOURCES, prefixes=("model.", ""), ignored=(r"\.rotary_emb\.inv_freq$",)),
        scales_from_hf=_scales_from_hf,
        scales_from_gguf=_scales_from_gguf,
        gguf_architectures=("minicpm", OTHER_ACTIVATION + "minicpm"),
        config_from_gguf=_config_from_gguf,
        config_to_gguf=_config_to_gguf,
        gguf=GGUF_LLAMA,
    ),
)
