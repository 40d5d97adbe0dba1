"""Options of config.json: both spellings, and refusal of everything that is not computed."""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavu.errors import DejavuError, ModelFormatError, SourceError, UnsupportedModelError
from dejavu.models.config import ModelConfig
from dejavu.models.families import FAMILIES, family_of_hf
from dejavu.models.loading import open_model
from dejavu.models.rope import frequencies
from dejavu.models.tensors import tensor_shapes
from dejavu.reference import ReferenceExecutor
from tiny_models import CASES, prompt, relative_error
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Folder = Callable[[str], Path]

TOLERANCE = TOLERANCES["reference_vs_transformers"]


@pytest.fixture
def copy(tmp_path: Path, tiny_folder: Folder) -> Callable[..., Path]:
    """A copy of a case's folder with options changed (None: removed)."""

    def changed(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_folder(name), folder, dirs_exist_ok=True)
        values = json.loads((folder / "config.json").read_text()) | changes
        values = {key: value for key, value in values.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return changed


def rewrite(folder: Path, change: Callable[[dict[str, NDArray[np.float32]]], Any]) -> None:
    """Change the tensors of a saved model."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def as_version_4(values: dict[str, Any]) -> dict[str, Any]:
    """The same options as transformers 4 wrote them."""
    old = {
        key: value for key, value in values.items() if key not in ("rope_parameters", "layer_types", "dtype")
    }
    old["torch_dtype"] = values.get("dtype")
    rope = dict(values.get("rope_parameters") or {})
    if "full_attention" in rope:
        local = rope["sliding_attention"]
        rope = rope["full_attention"]
        old["rope_local_base_freq"] = local["rope_theta"]
        old["sliding_window_pattern"] = 6
    neox = values["model_type"] == "gpt_neox"
    if "rope_theta" in rope:
        old["rotary_emb_base" if neox else "rope_theta"] = rope.pop("rope_theta")
    if neox:
        old["rotary_pct"] = rope.pop("partial_rotary_factor")
    old["rope_scaling"] = {"type": rope.pop("rope_type"), **rope} if rope.get("factor") else None
    if values["model_type"] == "bloom":
        old |= {"n_embed": old.pop("hidden_size"), "num_attention_heads": old.pop("n_head")}
    return old


@pytest.mark.parametrize("name", [name for name in CASES if name != "gemma3-scaled"])
def test_version_4_spelling_means_the_same(name: str, tiny_folder: Folder) -> None:
    values = json.loads((tiny_folder(name) / "config.json").read_text())
    old = as_version_4(values)
    assert old != values
    assert family_of_hf(old).config_from_hf(old) == family_of_hf(values).config_from_hf(values)


@pytest.mark.parametrize("name", CASES)
def test_configs_survive_a_round_trip(name: str, tiny_folder: Folder) -> None:
    config = open_model(tiny_folder(name)).config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_published_gemma3_config_with_images() -> None:
    """google/gemma-3-4b-it leaves out most of what equals the defaults."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    values = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "model_type": "gemma3",
        "text_config": text,
    }
    config = family_of_hf(values).config_from_hf(values)
    assert (config.n_heads, config.n_kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262208)
    assert config.window_layers[:12] == (True, True, True, True, True, False) * 2
    assert (config.rope_theta, config.rope_local_theta) == (1e6, 1e4)
    assert (config.rope_scaling.type, config.rope_scaling.factor, config.max_context) == (
        "linear",
        8.0,
        131072,
    )
    assert config.attn_scale == 256**-0.5
    assert config.eos_token_ids == (1, 106)
    assert config.tied_head


def test_generation_config_adds_ends(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert open_model(folder).config.eos_token_ids == (2, 7)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "llama",
            {"architectures": ["MambaForCausalLM"]},
            "supported are BambooForCausalLM, .*OPTForCausalLM",
        ),
        (
            "llama",
            {"architectures": None, "model_type": "mamba"},
            "'mamba'; supported are bamboo, bloom, falcon, gemma2",
        ),
        ("llama", {"hidden_act": "xielu"}, "'xielu'; supported are relu, relu2, .*silu, swish, gelu"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "default, linear, dynamic, llama3, yarn"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "alpha": 3}}, "alpha"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ("llama", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("llama", {"num_key_value_heads": 4}, "6 heads cannot share 4"),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "use_sliding_window"),
        (
            "qwen2",
            {"layer_types": ["full_attention", "chunked_attention"]},
            "sliding_attention are supported",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation"),
        ("gemma3", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "sliding_attention"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "post_layernorm"),
        ("neox", {"rotary_pct": 2.0, "rope_parameters": None}, "rotary_pct"),
    ],
)
def test_what_is_not_computed_is_refused(
    name: str, changes: dict[str, Any], message: str, copy: Callable[..., Path]
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        open_model(copy(name, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "sixty"}, "hidden_size is 'sixty'; a whole number"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; a whole number from 0 to 4096"),
        ({"num_hidden_layers": 4000}, "4000 layers; there are"),
        ({"num_hidden_layers": 3}, r"lacks model\.layers\.2\.input_layernorm\.weight"),
        ({"vocab_size": 98}, r"embed_tokens\.weight has shape \[97, 60\]; .* \[98, 60\]"),
        ({"tie_word_embeddings": False}, r"lacks lm_head\.weight"),
        ({"attention_bias": True}, r"lacks model\.layers\.0\.self_attn\.q_proj\.bias"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; a finite number"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        ({"eos_token_id": [2, "x"]}, "a token id or a list of them"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": [1]}, "an object"),
    ],
)
def test_contradictions_and_wrong_types_are_errors(
    changes: dict[str, Any], message: str, copy: Callable[..., Path]
) -> None:
    with pytest.raises(ModelFormatError, match=message):
        open_model(copy("llama", **changes))


def test_unexpected_tensors_are_errors(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(60, np.float32)}))
    with pytest.raises(
        UnsupportedModelError, match=r"do not call for: model\.layers\.0\.self_attn\.q_proj\.bias"
    ):
        open_model(folder)
    folder = copy("llama-biases", attention_bias=False)
    with pytest.raises(UnsupportedModelError, match="and 3 more"):
        open_model(folder)


def test_buffers_of_old_checkpoints_are_ignored(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    rewrite(
        folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(5, np.float32)})
    )
    open_model(folder)


@pytest.mark.parametrize(
    ("name", "prefix", "new"),
    [
        ("bloom", "transformer.", ""),
        ("opt", "model.decoder.", "decoder."),
        ("neox", "gpt_neox.", ""),
        ("gemma3", "model.", "language_model.model."),
        ("gemma3", "model.", "model.language_model."),
    ],
)
def test_other_prefixes(
    name: str,
    prefix: str,
    new: str,
    copy: Callable[..., Path],
    tiny_logits: Callable[[str], NDArray[np.float32]],
) -> None:
    def rename(tensors: dict[str, NDArray[np.float32]]) -> None:
        for key in [key for key in tensors if key.startswith(prefix)]:
            tensors[new + key.removeprefix(prefix)] = tensors.pop(key)

    folder = copy(name)
    rewrite(folder, rename)
    assert relative_error(run(folder, name), tiny_logits(name)) <= TOLERANCE


def test_neox_head_under_its_old_name(
    copy: Callable[..., Path], tiny_logits: Callable[[str], NDArray[np.float32]]
) -> None:
    folder = copy("neox")
    head = "embed_out.weight"
    rewrite(folder, lambda t: t.update({head: t.pop("lm_head.weight") if "lm_head.weight" in t else t[head]}))
    assert relative_error(run(folder, "neox"), tiny_logits("neox")) <= TOLERANCE


def test_a_tied_model_that_stores_its_head_too(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    before = run(folder, "llama")
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert open_model(folder).config.tied_head
    assert np.array_equal(run(folder, "llama"), before)
    rewrite(folder, lambda t: t.pop("model.embed_tokens.weight"))
    assert np.array_equal(run(folder, "llama"), before)


def test_a_tied_model_whose_head_differs_is_not_tied(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    rewrite(folder, lambda t: t.update({"lm_head.weight": 2 * t["model.embed_tokens.weight"]}))
    model = open_model(folder)
    assert not model.config.tied_head
    assert np.array_equal(model.weights.read("head.weight"), 2 * model.weights.read("embed.weight"))


def run(folder: Path, name: str) -> NDArray[np.float32]:
    model = open_model(folder)
    executor = ReferenceExecutor(model.config, model.weights)
    return executor.prefill(prompt(CASES[name]), executor.new_cache(), all_logits=True)


def test_what_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        open_model(tmp_path / "nothing")
    with pytest.raises(SourceError, match=r"holds no config\.json"):
        open_model(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"?")
    with pytest.raises(UnsupportedModelError, match=r"neither a folder nor a \.gguf file"):
        open_model(tmp_path / "model.bin")
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelFormatError):
            open_model(tmp_path)


KEYS = [
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_hidden_layers",
    "vocab_size",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "hidden_act",
    "eos_token_id",
    "sliding_window",
    "layer_types",
    "tie_word_embeddings",
    "max_window_layers",
    "ffn_dim",
    "word_embed_proj_dim",
    "rotary_pct",
    "n_head",
    "text_config",
    "use_sliding_window",
    "query_pre_attn_scalar",
]
SCALING = ["rope_type", "type", "factor", "original_max_position_embeddings", "low_freq_factor", "beta_fast"]
SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from([2**31, 2**63, 10**30, 10**400, 0.0, 1e308, float("nan"), float("inf"), -0.5, 0.3]),
    st.sampled_from(["", "silu", "linear", "yarn", "dynamic", "llama3", "default"]),
)
VALUES = st.one_of(SIMPLE, st.lists(SIMPLE, max_size=3), st.dictionaries(st.sampled_from(SCALING), SIMPLE))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FAMILIES), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_hostile_options_end_in_a_config_or_a_typed_error(family: Any, changes: dict[str, Any]) -> None:
    values = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 50,
        "intermediate_size": 96,
        "ffn_dim": 96,
    }
    with contextlib.suppress(DejavuError):
        config = family.config_from_hf(values | changes)
        assert "embed.weight" in tensor_shapes(config)
        if config.position == "rope":
            assert np.isfinite(frequencies(config, length=1000)).all()
