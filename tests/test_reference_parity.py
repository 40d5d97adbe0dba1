"""The reference executor equals transformers on tiny random models of every family and option."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.models.config import RopeScaling
from dejavu.models.loading import open_model
from dejavu.reference import ReferenceExecutor
from tiny_models import CASES, prompt, relative_error, transformers_logits
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Folder = Callable[[str], Path]
    Logits = Callable[[str], NDArray[np.float32]]

TOLERANCE = TOLERANCES["reference_vs_transformers"]


@pytest.mark.parametrize("name", CASES)
def test_prefill_equals_transformers(name: str, tiny_folder: Folder, tiny_logits: Logits) -> None:
    model = open_model(tiny_folder(name))
    executor = ReferenceExecutor(model.config, model.weights)
    found = executor.prefill(prompt(CASES[name]), executor.new_cache(), all_logits=True)
    assert relative_error(found, tiny_logits(name)) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_decoding_step_by_step_equals_transformers(name: str, tiny_folder: Folder) -> None:
    folder, tokens = tiny_folder(name), prompt(CASES[name])
    model = open_model(folder)
    executor = ReferenceExecutor(model.config, model.weights)
    cache, half = executor.new_cache(), len(tokens) // 2
    steps = [executor.prefill(tokens[:half], cache, all_logits=True)]
    steps += [executor.decode(tokens[i : i + 1], [cache]) for i in range(half, len(tokens))]
    assert relative_error(np.concatenate(steps), transformers_logits(folder, tokens, half)) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama-head-dim", {"norm_eps": 1e-6}),
        ("llama-relu", {"activation": "silu"}),
        ("llama-relu2", {"activation": "relu"}),
        ("falcon-groups", {"activation": "gelu"}),
        ("falcon", {"parallel_residual": False}),
        ("llama-biases", {"biases": ("q", "k", "v", "o", "gate", "up")}),
        ("rope-linear", {"rope_scaling": RopeScaling()}),
        ("rope-dynamic", {"rope_scaling": RopeScaling()}),
        ("rope-llama3", {"rope_scaling": RopeScaling()}),
        ("rope-yarn", {"rope_scaling": RopeScaling()}),
        ("mistral-window", {"sliding_window": 8}),
        ("qwen2-window", {"window_layers": (True, True, True)}),
        ("qwen3", {"qk_norm": False}),
        ("gemma2", {"attn_softcap": 0.0}),
        ("gemma2", {"logit_softcap": 0.0}),
        ("gemma2", {"attn_scale": 0.0}),
        ("gemma2-plain", {"post_norms": False}),
        ("gemma2-plain", {"embed_scale": 1.0}),
        ("gemma3-scaled", {"rope_local_theta": 3000.0}),
        ("opt", {"activation": "gelu"}),
        ("opt-gelu", {"activation": "gelu_tanh"}),
        ("opt-350m", {"pre_norm": True}),
        ("bloom", {"embed_norm": False}),
        ("bloom", {"position": "rope"}),
        ("neox", {"parallel_residual": False}),
        ("neox", {"rotary_dim": 0}),
    ],
)
def test_each_option_matters(
    name: str, changes: dict[str, Any], tiny_folder: Folder, tiny_logits: Logits
) -> None:
    """The comparisons above could not pass without it."""
    model = open_model(tiny_folder(name))
    executor = ReferenceExecutor(dataclasses.replace(model.config, **changes), model.weights)
    found = executor.prefill(prompt(CASES[name]), executor.new_cache(), all_logits=True)
    assert relative_error(found, tiny_logits(name)) > 10 * TOLERANCE


def test_the_sharded_case_is_sharded(tiny_folder: Folder) -> None:
    assert len(list(tiny_folder("llama-sharded").glob("*.safetensors"))) > 1
