"""LoRA adapters: those of any family as transformers computes them, the way out and back, and files that do not fit."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dejavu import LLM, SamplingParams
from dejavu.cli.app import run
from dejavu.engine import NativeExecutor
from dejavu.errors import (
    DejavuError,
    InputError,
    ModelFormatError,
    NumericsError,
    SourceError,
    UnsupportedModelError,
)
from dejavu.models.adapter_config import ADAPTER_NAME, Adapter
from dejavu.models.loading import hf_layout, open_model
from dejavu.models.lora import ARRAYS_NAME, write_adapter
from dejavu.reference import ReferenceExecutor
from tiny_chat import build_tiny_chat
from tiny_models import CASES, prompt, relative_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.models.loading import OpenModel

RANK = 3
PREFIX = "base_model.model."
PLAIN: dict[str, Any] = {
    # As PEFT 0.17 writes it.
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "",
    "bias": "none",
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 5,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "qalora_group_size": 16,
    "r": RANK,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def save(folder: Path, base: Path, arrays: dict[str, NDArray[Any]], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = PLAIN | {"base_model_name_or_path": str(base)} | changes
    (folder / ADAPTER_NAME).write_text(json.dumps(config))
    save_file(arrays, str(folder / ARRAYS_NAME))
    return folder


def update(
    rng: np.random.Generator, module: str, out: int, columns: int, rank: int = RANK
) -> dict[str, NDArray[np.float32]]:
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((rank, columns), (out, rank)))
    return {f"{PREFIX}{module}.lora_A.weight": a / columns**0.5, f"{PREFIX}{module}.lora_B.weight": b / 4}


FAMILIES = ("llama", "qwen3-biases", "mistral", "gemma3", "opt", "bloom", "neox", "falcon", "falcon-groups")


@pytest.mark.parametrize("name", FAMILIES)
def test_adapts_what_transformers_calls_so(
    name: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder(name), dtype=torch.float32).eval()
    rng, arrays, ends = np.random.default_rng(0), {}, set()
    with torch.no_grad():
        for module, linear in model.named_modules():
            if isinstance(linear, torch.nn.Linear) and (".0." in module or ".1." in module):
                arrays |= (made := update(rng, module, *linear.weight.shape))
                a, b = made.values()
                linear.weight += 5 / RANK * torch.from_numpy(b @ a)
                ends.add(module.rpartition(".")[2])
        tokens = prompt(CASES[name])
        expected = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
    only = {"layers_to_transform": [0, 1]}
    opened = open_model(save(tmp_path / "a", tiny_folder(name), arrays, target_modules=sorted(ends), **only))
    runs = ReferenceExecutor(opened.config, opened.weights)
    found = runs.prefill(tokens, runs.new_cache(), all_logits=True)
    opened.close()
    assert relative_error(found, expected) < 1e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_chat(tmp_path_factory.mktemp("lora") / "base")


Q, DOWN = "self_attn.q_proj", "mlp.down_proj"


def pairs(base: Path, *modules: str, rank: int = RANK) -> dict[str, NDArray[np.float32]]:
    weights, rng = load_file(base / "model.safetensors"), np.random.default_rng(1)
    names = [f"model.layers.{i}.{module}" for i in (0, 1) for module in modules]
    arrays: dict[str, NDArray[np.float32]] = {}
    for name in names:
        arrays |= update(rng, name, *weights[f"{name}.weight"].shape, rank=rank)
    return arrays


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 5 / 3),
        ({"use_rslora": True}, 5 / 3**0.5),
        ({"alpha_pattern": {"q_proj": 7}}, 7 / 3),
        ({"r": 8, "rank_pattern": {"v_proj": 1, "self_attn.q_proj": 3}}, 5 / 3),
        (
            {"r": 8, "rank_pattern": {"layers.0.self_attn.q_proj": 3, "model.layers.1.self_attn.q_proj": 3}},
            5 / 3,
        ),
        ({"alpha_pattern": {"q_proj": 6, "0.self_attn.q_proj": 7}}, 6 / 3),
        ({"target_modules": r".*\.q_proj"}, 5 / 3),
        ({"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]}, 5 / 3),
        ({"init_lora_weights": "gaussian"}, 5 / 3),
        ({"lora_alpha": 2.5}, 2.5 / 3),
    ],
)
def test_options_of_peft(base: Path, tmp_path: Path, changes: dict[str, Any], scale: float) -> None:
    arrays = pairs(base, Q)
    opened, original = open_model(save(tmp_path / "a", base, arrays, **changes)), open_model(base)
    for layer in (0, 1):
        a, b = (arrays[f"{PREFIX}model.layers.{layer}.{Q}.lora_{x}.weight"] for x in "AB")
        name = f"layers.{layer}.q.weight"
        np.testing.assert_allclose(
            opened.weights.read(name), original.weights.read(name) + scale * (b @ a), atol=1e-5
        )
        np.testing.assert_array_equal(
            opened.weights.read(f"layers.{layer}.k.weight"), original.weights.read(f"layers.{layer}.k.weight")
        )
    assert (opened.weights.source_type("layers.0.q.weight"), opened.config) == ("F16", original.config)
    opened.close()
    original.close()


def factors(opened: OpenModel) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    rng, found = np.random.default_rng(2), {}
    for name in opened.weights.names():
        shape = opened.weights.shape(name)
        if name.startswith("layers.") and len(shape) == 2:
            a, b = (rng.standard_normal(s).astype(np.float16) for s in ((RANK, shape[1]), (shape[0], RANK)))
            found[name] = a.astype(np.float32), b.astype(np.float32)
    return found


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt", "bloom", "neox", "falcon-groups"])
def test_out_and_back(name: str, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    original = open_model(tiny_folder(name))
    made, target = factors(original), tmp_path / "a"
    adapter = Adapter(str(tiny_folder(name)), RANK, 2 * RANK)
    write_adapter(target, original.config, hf_layout(original), made, adapter)
    opened = open_model(target)
    for tensor in original.weights.names():
        expected = original.weights.read(tensor)
        if tensor in made:
            expected = expected + 2 * made[tensor][1] @ made[tensor][0]
        found = opened.weights.read(tensor)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_array_equal(opened.weights.read(tensor, 3, 7), found[3:7])
        if found.ndim == 2:
            np.testing.assert_array_equal(opened.weights.read_columns(tensor, 0, found.shape[1]), found)
    with pytest.raises(InputError, match="exists"):
        write_adapter(target, original.config, hf_layout(original), made, adapter)
    for model in (opened, original):
        model.close()


def test_scales_of_a_family_hold_for_updates(base: Path, tmp_path: Path) -> None:
    """MiniCPM multiplies branches; the model's weights have that in them, the file's and the adapter's do not."""
    folder = tmp_path / "minicpm"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm"}
    (folder / "config.json").write_text(json.dumps(config | {"scale_depth": 1.4, "dim_model_base": 16}))
    arrays = pairs(base, DOWN)
    original = open_model(folder)
    opened = open_model(save(tmp_path / "a", folder, arrays, target_modules=["down_proj"]))
    a, b = (arrays[f"{PREFIX}model.layers.0.{DOWN}.lora_{x}.weight"] for x in "AB")
    difference = opened.weights.read("layers.0.down.weight") - original.weights.read("layers.0.down.weight")
    np.testing.assert_allclose(difference, 1.4 / 2**0.5 * 5 / RANK * (b @ a), atol=1e-5)
    opened.close()
    made = factors(original)
    write_adapter(
        tmp_path / "b", original.config, hf_layout(original), made, Adapter(str(folder), RANK, RANK)
    )
    again = open_model(tmp_path / "b")
    for name, (a, b) in made.items():
        np.testing.assert_allclose(
            again.weights.read(name), original.weights.read(name) + b @ a, rtol=2e-3, atol=2e-2
        )
    again.close()
    original.close()


def test_running_and_converting(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = save(tmp_path / "a", base, pairs(base, Q, DOWN), target_modules=["q_proj", "down_proj"])
    assert run(["convert", str(adapter), "-o", str(tmp_path / "merged"), "--json"]) == 0
    assert run(["info", str(adapter), "--json"]) == 0
    capsys.readouterr()
    tokens, logits = np.arange(3, 12, dtype=np.int32), []
    for path in (adapter, tmp_path / "merged", base):
        with LLM.from_pretrained(str(path), codec="f32", cache=False, threads=1) as llm:
            assert llm.generate("the cat", SamplingParams(max_tokens=4, ignore_eos=True)).text
            assert llm.tokenizer.chat_template
            logits.append(llm.executor.prefill(tokens, llm.executor.new_cache(), all_logits=True))
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)
    assert np.abs(logits[0] - logits[2]).max() > 0.1


def test_an_adapter_of_an_adapter(base: Path, tmp_path: Path) -> None:
    first = save(tmp_path / "a", base, pairs(base, Q))
    second = save(tmp_path / "b", first, pairs(base, Q))
    models = [open_model(path) for path in (base, first, second)]
    zero, one, two = (model.weights.read("layers.1.q.weight") for model in models)
    np.testing.assert_allclose(two - one, one - zero, atol=1e-5)
    assert len({model.weights.fingerprint for model in models}) == 3
    for model in models:
        model.close()
    save(first, second, pairs(base, Q))
    with pytest.raises(ModelFormatError, match="is its own base"):
        open_model(second)


def test_an_adapter_runs_on_its_base_as_it_is_now(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    changed = shutil.copytree(base, tmp_path / "base")
    adapter = save(tmp_path / "a", changed, pairs(base, Q))

    def fingerprint() -> str:
        runs = NativeExecutor.load(adapter, codec="int8", threads=1)
        runs.close()
        return runs.packed.fingerprint

    first = fingerprint()
    assert fingerprint() == first
    weights = load_file(changed / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 2
    save_file(weights, str(changed / "model.safetensors"))
    opened = open_model(adapter)
    opened.close()
    assert fingerprint() == opened.weights.fingerprint != first
    with LLM.from_pretrained(str(adapter), codec="int8", threads=1) as llm:
        assert llm.executor.packed.fingerprint == opened.weights.fingerprint  # type: ignore[attr-defined]


def test_a_whole_model_that_says_how_it_was_made(base: Path, tmp_path: Path) -> None:
    adapter = save(tmp_path / "a", base, pairs(base, Q))
    whole = shutil.copytree(base, tmp_path / "whole")
    shutil.copyfile(adapter / ADAPTER_NAME, whole / ADAPTER_NAME)
    models = [open_model(path) for path in (base, whole)]
    assert models[0].weights.fingerprint == models[1].weights.fingerprint
    for model in models:
        model.close()


def test_a_scale_is_part_of_the_fingerprint(base: Path, tmp_path: Path) -> None:
    found = set()
    for alpha in (5, 6):
        opened = open_model(save(tmp_path / "a", base, pairs(base, Q), lora_alpha=alpha))
        found.add(opened.weights.fingerprint)
        opened.close()
    assert len(found) == 2


def read(folder: Path) -> None:
    opened = open_model(folder)
    try:
        opened.weights.read("layers.0.q.weight")
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"peft_type": "IA3"}, UnsupportedModelError, "peft_type is 'IA3'"),
        ({"bias": "all"}, UnsupportedModelError, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, UnsupportedModelError, "modules_to_save"),
        ({"use_dora": True}, UnsupportedModelError, "use_dora"),
        ({"fan_in_fan_out": True}, UnsupportedModelError, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, UnsupportedModelError, "init_lora_weights is 'pissa'"),
        ({"task_type": "SEQ_CLS"}, UnsupportedModelError, "task_type"),
        ({"layer_replication": [[0, 2]]}, UnsupportedModelError, "layer_replication"),
        ({"rank_pattern": {r".*q_proj": 3}}, UnsupportedModelError, "rank_pattern"),
        ({"of_the_future": True}, UnsupportedModelError, "of_the_future"),
        ({"r": 0}, UnsupportedModelError, "r is 0"),
        ({"r": "3"}, ModelFormatError, "r is '3'"),
        ({"r": 4}, ModelFormatError, r"F32 \[3, 32\]; .* floats \[4, 32\] are needed"),
        ({"lora_alpha": float("nan")}, ModelFormatError, "lora_alpha is nan"),
        ({"lora_alpha": 1e300}, NumericsError, "holds NaN or infinity"),
        ({"rank_pattern": {"q_proj": -1}}, ModelFormatError, "q_proj is -1"),
        ({"target_modules": ["q_proj", "v_proj"]}, ModelFormatError, "updates of 2 linears; .* they are 4"),
        ({"target_modules": ["v_proj"]}, ModelFormatError, "updates of 2 linears"),
        ({"target_modules": [3]}, ModelFormatError, "target_modules"),
        ({"base_model_name_or_path": None}, ModelFormatError, "names no base"),
        ({"base_model_name_or_path": "/no/such/model"}, SourceError, "the base of .*no such file or folder"),
    ],
)
def test_options_that_are_refused(
    base: Path, tmp_path: Path, changes: dict[str, Any], error: type[DejavuError], message: str
) -> None:
    folder = save(tmp_path / "a", base, pairs(base, Q), **changes)
    with pytest.raises(error, match=message):
        read(folder)


def test_tensors_that_are_refused(base: Path, tmp_path: Path) -> None:
    good = pairs(base, Q)
    first = f"{PREFIX}model.layers.0.{Q}.lora_A.weight"

    def refused(error: type[DejavuError], message: str, changes: dict[str, Any], drop: str = "") -> None:
        arrays = {name: x for name, x in good.items() if name != drop} | changes
        folder = save(tmp_path / "a", base, arrays)
        with pytest.raises(error, match=message):
            read(folder)

    zeros = np.zeros((RANK, 32), np.float32)
    refused(ModelFormatError, "lora_A.weight is not in the file", {}, first)
    refused(ModelFormatError, r"F32 \[3, 31\]", {first: zeros[:, :31].copy()})
    refused(ModelFormatError, r"F32 \[96\]", {first: zeros.ravel()})
    refused(ModelFormatError, "is I8", {first: zeros.astype(np.int8)})
    refused(NumericsError, "holds NaN", {first: np.full_like(zeros, np.nan)})
    refused(NumericsError, "holds NaN", {first: np.full_like(zeros, 3e38)})
    refused(UnsupportedModelError, "lm_head", {f"{PREFIX}lm_head.lora_A.weight": zeros})
    refused(UnsupportedModelError, "magnitude", {f"{PREFIX}model.layers.0.{Q}.lora_magnitude_vector": zeros})
    refused(UnsupportedModelError, "layers.7", {first.replace("layers.0", "layers.7"): zeros})
    refused(UnsupportedModelError, "q_proj.weight", {f"{PREFIX}model.layers.0.{Q}.weight": zeros})
    folder = save(tmp_path / "a", base, {"x": zeros})
    (folder / ARRAYS_NAME).write_bytes((folder / ARRAYS_NAME).read_bytes()[:-9])
    with pytest.raises(ModelFormatError, match=r"takes|end at"):
        open_model(folder)
    (folder / ARRAYS_NAME).unlink()
    with pytest.raises(SourceError, match="cannot open"):
        open_model(folder)
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelFormatError, match="never loaded"):
        open_model(folder)
    (folder / ADAPTER_NAME).write_text("[]")
    with pytest.raises(ModelFormatError, match="an object is needed"):
        open_model(folder)


def test_factors_that_cannot_be_written(base: Path, tmp_path: Path) -> None:
    original = open_model(base)
    for bad in (np.nan, 1e6):
        made = factors(original)
        made["layers.1.up.weight"][1][0, 0] = bad
        with pytest.raises(NumericsError, match="up_proj holds NaN or values beyond"):
            write_adapter(
                tmp_path / "a", original.config, hf_layout(original), made, Adapter(str(base), RANK, RANK)
            )
    original.close()
    assert not (tmp_path / "a").exists()
