"""Models with exact zeros made of others: ProSparse-Llama (FATReLU), TurboSparse-Mistral and Bamboo (dReLU).

ReluLLaMA needs nothing of its own: it is Llama with ``hidden_act`` relu.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from dejavu.models.families.family import Family, Layout
from dejavu.models.families.llama import GGUF_LLAMA, HF_SOURCES, config_from_hf, config_to_gguf, config_to_hf
from dejavu.models.families.options import Options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dejavu.models.config import ModelConfig


def _prosparse_from_hf(values: Mapping[str, object]) -> ModelConfig:
    # Other models, with sparse attention, go by the same architecture.
    Options(values, where="config.json").require("model_type", "sparsellama")
    return dataclasses.replace(config_from_hf(values, kind="llama"), family="sparsellama")


def _prosparse_to_hf(config: ModelConfig) -> dict[str, object]:
    values = config_to_hf(config, kind="llama", architecture="SparseLlamaForCausalLM")
    return values | {"model_type": "sparsellama"}


def _bamboo_from_hf(values: Mapping[str, object]) -> ModelConfig:
    # The activation is applied to gate and up.
    Options(values, where="config.json", defaults={"hidden_act": "silu"}).require("hidden_act", "relu")
    return dataclasses.replace(config_from_hf(values, kind="mistral"), family="bamboo", activation="drelu")


def _bamboo_to_hf(config: ModelConfig) -> dict[str, object]:
    values = config_to_hf(config, kind="mistral", architecture="BambooForCausalLM")
    return values | {"model_type": "bamboo", "hidden_act": "relu"}


FAMILIES = (
    Family(
        name="sparsellama",
        model_types=("sparsellama",),
        hf_architectures=("SparseLlamaForCausalLM",),
        config_from_hf=_prosparse_from_hf,
        config_to_hf=_prosparse_to_hf,
        hf=Layout(HF_SOURCES, prefixes=("model.", ""), ignored=(r"\.rotary_emb\.inv_freq$",)),
        config_to_gguf=partial(config_to_gguf, kind="llama"),  # and read as llama with another activation
        gguf=GGUF_LLAMA,
    ),
    Family(
        name="bamboo",
        model_types=("bamboo",),
        hf_architectures=("BambooForCausalLM",),
        config_from_hf=_bamboo_from_hf,
        config_to_hf=_bamboo_to_hf,
        # Published checkpoints bring predictors of their own; what they were trained to approximate is computed.
        hf=Layout(
            HF_SOURCES,
            prefixes=("model.", ""),
            ignored=(r"\.rotary_emb\.inv_freq$", r"\.mlp\.predictor\."),
        ),
        config_to_gguf=partial(config_to_gguf, kind="llama"),
        gguf=GGUF_LLAMA,
    ),
)
