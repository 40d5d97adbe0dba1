"""ReluLLaMA, ProSparse, TurboSparse and MiniCPM beside transformers' Llama and Mistral with their changes hooked in."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu import _core
from dejavu.codecs import CODECS
from dejavu.engine import NativeExecutor
from dejavu.engine.packed import pack_in_memory
from dejavu.errors import UnsupportedModelError
from dejavu.models.folder_writer import write_folder
from dejavu.models.loading import open_model
from dejavu.reference import ReferenceExecutor
from tiny_models import CASES, prompt, relative_error
from tolerances import TOLERANCES, prefill_tolerance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Folder = Callable[[str], Path]

ISAS = _core.isas()
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "relullama": ("llama", {"hidden_act": "relu"}),
    "prosparse": (
        "llama-biases",
        {
            "architectures": ["SparseLlamaForCausalLM"],
            "model_type": "sparsellama",
            "hidden_act": "fatrelu",
            "hidden_act_param": 0.05,
        },
    ),
    "turbosparse": (
        "mistral-window",
        {"architectures": ["BambooForCausalLM"], "model_type": "bamboo", "hidden_act": "relu"},
    ),
    "minicpm": (
        "llama",
        {
            "architectures": ["MiniCPMForCausalLM"],
            "model_type": "minicpm",
            "scale_emb": 3,
            "scale_depth": 1.4,
            "dim_model_base": 25,
        },
    ),
    "minicpm-s": (
        "llama-biases",
        {
            "architectures": ["MiniCPMForCausalLM"],
            "model_type": "minicpm",
            "hidden_act": "fatrelu",
            "hidden_act_param": 0.04,
            "scale_emb": 0.7,
            "scale_depth": 0.9,
            "dim_model_base": 100,
        },
    ),
}


@pytest.fixture
def model_folder(tmp_path: Path, tiny_folder: Folder) -> Callable[..., Path]:
    """Writes a model of `MODELS`: the tensors of a tiny Llama or Mistral under other options."""

    def write(name: str, **changes: Any) -> Path:
        base, options = MODELS[name]
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for file in tiny_folder(base).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        values = json.loads((folder / "config.json").read_text()) | options | changes
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return write


def twin_logits(name: str, folder: Path, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Transformers' model of the base family, changed as the papers and published model code say."""
    import torch
    import transformers

    options = MODELS[name][1]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    d, layers = model.config.hidden_size, model.config.num_hidden_layers

    def scaled(factor: float) -> Callable[..., torch.Tensor]:
        return lambda module, inputs, output: output * factor

    for layer in model.model.layers:
        mlp = layer.mlp
        if options.get("hidden_act") == "fatrelu":
            mlp.act_fn = torch.nn.Threshold(options["hidden_act_param"], 0.0)
        elif options.get("hidden_act") == "relu":
            mlp.act_fn = torch.nn.ReLU()
        if name == "turbosparse":
            mlp.up_proj.register_forward_hook(lambda module, inputs, output: output.relu())
        if "scale_depth" in options:
            for linear in (layer.self_attn.o_proj, mlp.down_proj):
                linear.register_forward_hook(scaled(options["scale_depth"] / math.sqrt(layers)))
    if "scale_emb" in options:
        model.model.embed_tokens.register_forward_hook(scaled(options["scale_emb"]))
        model.model.norm.register_forward_hook(scaled(options["dim_model_base"] / d))
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy())


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_equals_the_twin(
    name: str, model_folder: Callable[..., Path], tiny_folder: Folder
) -> None:
    base, _ = MODELS[name]
    tokens = prompt(CASES[base])
    model = open_model(model_folder(name))
    executor = ReferenceExecutor(model.config, model.weights)
    found = executor.prefill(tokens, executor.new_cache(), all_logits=True)
    expected = twin_logits(name, tiny_folder(base), tokens)
    assert relative_error(found, expected) <= TOLERANCES["reference_vs_transformers"]


@pytest.mark.parametrize(
    ("name", "isa"),
    [(name, isa) for name in MODELS for isa in (ISAS if name in ("turbosparse", "minicpm-s") else ISAS[-1:])],
)
@pytest.mark.parametrize("codec", CODECS)
def test_native_equals_reference(
    name: str, codec: Any, isa: str, model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEJAVU_ISA", isa)
    model = open_model(model_folder(name))
    tokens = prompt(CASES[MODELS[name][0]])[:24]
    native = NativeExecutor(pack_in_memory(model.config, model.weights, codec, 1), kv_dtype="f32", threads=2)
    reference = ReferenceExecutor(model.config, model.weights, codec=codec)
    expected = reference.prefill(tokens, reference.new_cache(), all_logits=True)
    cache = native.new_cache()
    found = np.concatenate([native.decode(tokens[i : i + 1], [cache]) for i in range(len(tokens))])
    assert relative_error(found, expected) <= TOLERANCES[f"native_{codec}"]
    prefilled = native.prefill(tokens, native.new_cache(), all_logits=True)
    assert relative_error(prefilled, expected) <= prefill_tolerance(codec, isa)


@pytest.mark.parametrize("name", MODELS)
def test_a_written_folder_is_the_same_model(
    name: str, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    model = open_model(model_folder(name))
    write_folder(tmp_path / "copy", model.config, model.weights.read)
    copy = open_model(tmp_path / "copy")
    assert copy.config == model.config
    for tensor in model.weights.names():
        np.testing.assert_allclose(copy.weights.read(tensor), model.weights.read(tensor), rtol=1e-6)


def test_options_are_read(model_folder: Callable[..., Path]) -> None:
    fields = {
        name: (c.family, c.activation, c.activation_threshold, c.embed_scale)
        for name, c in ((name, open_model(model_folder(name)).config) for name in MODELS)
    }
    assert fields == {
        "relullama": ("llama", "relu", 0.0, 1.0),
        "prosparse": ("sparsellama", "fatrelu", 0.05, 1.0),
        "turbosparse": ("bamboo", "drelu", 0.0, 1.0),
        "minicpm": ("minicpm", "silu", 0.0, 3.0),
        "minicpm-s": ("minicpm", "fatrelu", 0.04, 0.7),
    }


def test_predictors_of_a_checkpoint_are_ignored(model_folder: Callable[..., Path]) -> None:
    from safetensors.numpy import load_file, save_file

    folder = model_folder("turbosparse")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.predictor.0.weight"] = np.zeros((4, 60), np.float32)
    save_file(tensors, folder / "model.safetensors")
    assert "layers.0.gate.weight" in open_model(folder).weights


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("relullama", {"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ("prosparse", {"model_type": "llama"}, "model_type is 'llama'"),
        ("turbosparse", {"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ("minicpm", {"num_experts": 8}, "num_experts is 8"),
        ("minicpm", {"sparse_config": {"block_size": 64}}, "sparse_config"),
        ("minicpm", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}}, "rope"),
    ],
)
def test_what_is_not_computed_is_refused(
    name: str, changes: dict[str, Any], message: str, model_folder: Callable[..., Path]
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        open_model(model_folder(name, **changes))
