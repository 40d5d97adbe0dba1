"""GGUF files of every architecture give the logits of the Hugging Face model that they were made from."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavu.errors import DejavuError, ModelFormatError, UnsupportedModelError
from dejavu.models.config import ModelConfig
from dejavu.models.families import FAMILIES
from dejavu.models.loading import open_model
from dejavu.models.rope import frequencies
from dejavu.models.tensors import tensor_shapes
from dejavu.reference import ReferenceExecutor
from tiny_gguf import convert
from tiny_models import CASES, build, prompt, relative_error, transformers_logits
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

TOLERANCE = TOLERANCES["reference_vs_transformers"]


def logits(path: Path, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    model = open_model(path)
    executor = ReferenceExecutor(model.config, model.weights)
    return executor.prefill(tokens, executor.new_cache(), all_logits=True)


@pytest.mark.parametrize(
    ("name", "arch", "extra"),
    [
        ("llama", "llama", {}),
        ("llama-biases", "llama", {"vocab_size": 97}),
        ("llama-head-dim", "llama", {"rope.dimension_count": 16}),
        ("rope-linear", "llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 3.0}),
        (
            "rope-yarn",
            "llama",
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 16,
                "context_length": 64,
            },
        ),
        ("qwen2", "qwen2", {}),
        ("qwen3", "qwen3", {}),
        ("bloom", "bloom", {}),
        ("neox", "gptneox", {}),
    ],
)
def test_gguf_equals_transformers(
    name: str,
    arch: str,
    extra: dict[str, Any],
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    tiny_logits: Callable[[str], NDArray[np.float32]],
) -> None:
    convert(tiny_folder(name), tmp_path / "m.gguf", arch, **extra)
    assert relative_error(logits(tmp_path / "m.gguf", prompt(CASES[name])), tiny_logits(name)) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "arch", "extra"),
    [
        ("gemma2", "gemma2", {}),
        ("gemma3", "gemma3", {}),
        ("gemma3-scaled", "gemma3", {"rope.freq_base_swa": 70.0, "attention.sliding_window_pattern": 2}),
    ],
)
def test_gemma_equals_transformers(
    name: str, arch: str, extra: dict[str, Any], tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    # GGUF has no query_pre_attn_scalar: head_dim serves, as in all published models but the largest.
    options = CASES[name].options | {"query_pre_attn_scalar": 14}
    if name == "gemma3-scaled":
        extra = extra | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    case = dataclasses.replace(CASES[name], options=options)
    build(case, tmp_path)
    convert(tmp_path, tmp_path / "m.gguf", arch, **extra)
    tokens = prompt(case)
    expected = transformers_logits(tmp_path, tokens, len(tokens))
    assert relative_error(logits(tmp_path / "m.gguf", tokens), expected) <= TOLERANCE


def test_llama3_scaling_stored_as_a_tensor(
    tmp_path: Path,
    tiny_folder: Callable[[str], Path],
    tiny_logits: Callable[[str], NDArray[np.float32]],
) -> None:
    config = open_model(tiny_folder("rope-llama3")).config
    plain = dataclasses.replace(config, rope_scaling=type(config.rope_scaling)())
    factors = (frequencies(plain) / frequencies(config)).astype(np.float32)
    assert not np.allclose(factors, 1)
    convert(tiny_folder("rope-llama3"), tmp_path / "m.gguf", "llama", rope_freqs=factors)
    found = logits(tmp_path / "m.gguf", prompt(CASES["rope-llama3"]))
    assert relative_error(found, tiny_logits("rope-llama3")) <= TOLERANCE

    convert(tiny_folder("rope-llama3"), tmp_path / "bad.gguf", "llama", rope_freqs=factors[1:])
    with pytest.raises(ModelFormatError, match="rope_freqs"):
        open_model(tmp_path / "bad.gguf")
    convert(tiny_folder("rope-llama3"), tmp_path / "zero.gguf", "llama", rope_freqs=0 * factors)
    with pytest.raises(ModelFormatError, match="rope_freqs"):
        open_model(tmp_path / "zero.gguf")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"expert_count": 8}, "expert_count = 8 is not supported"),
        ({"rope.scaling.type": "longrope"}, "supported are none, linear, yarn"),
        ({"attention.value_length": 8}, "attention.value_length"),
        ({"attention.causal": False}, "attention.causal"),
        ({"rope.dimension_count": 4}, "rope.dimension_count"),
        ({"logit_scale": 0.5}, "logit_scale"),
    ],
)
def test_options_that_change_the_arithmetic_are_refused(
    extra: dict[str, Any], message: str, tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    convert(tiny_folder("llama"), tmp_path / "m.gguf", "llama", **extra)
    with pytest.raises(UnsupportedModelError, match=message):
        open_model(tmp_path / "m.gguf")


def test_options_without_effect_are_accepted(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    extra = {"expert_count": 0, "rope.scaling.finetuned": False, "tensor_data_layout": "Meta AI original pth"}
    convert(tiny_folder("llama"), tmp_path / "m.gguf", "llama", **extra)
    assert open_model(tmp_path / "m.gguf").config.eos_token_ids == (2,)


def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        UnsupportedModelError,
        match=r"'mamba'; supported are bloom, dejavu-llama, .*gemma2, gemma3, gptneox, llama",
    ):
        open_model(tmp_path / "m.gguf")


def test_a_missing_option_is_named(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    convert(tiny_folder("llama"), tmp_path / "m.gguf", "llama", block_count=3)
    with pytest.raises(ModelFormatError, match=r"lacks blk\.2\.attn_norm\.weight.* and 4 more"):
        open_model(tmp_path / "m.gguf")


class Shapes:
    """Tensors of which only names and shapes are asked."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def read_rows(self, name: str) -> NDArray[np.float32]:
        return np.ones(self.shapes[name], np.float32)


KEYS = [
    "embedding_length",
    "block_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "feed_forward_length",
    "context_length",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "use_parallel_residual",
    "hidden_act",
    "hidden_act_param",
    "embedding_scale",
]
VALUES = st.one_of(
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from(
        [
            2**31,
            2**63,
            0.0,
            1e-5,
            1e308,
            float("nan"),
            float("inf"),
            -0.5,
            "yarn",
            "linear",
            "relu",
            "fatrelu",
            "",
        ]
    ),
    st.lists(st.integers(0, 9), max_size=3),
)
SHAPES = st.lists(st.integers(0, 70), max_size=3).map(tuple)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([family for family in FAMILIES if family.gguf_architectures]),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    st.dictionaries(st.sampled_from(["token_embd.weight", "rope_freqs.weight", "output.weight"]), SHAPES),
)
def test_hostile_metadata_ends_in_a_config_or_a_typed_error(
    family: Any, changes: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    sound = dict.fromkeys(KEYS[:7], 8) | {KEYS[7]: 1e-5, KEYS[8]: 1e-5, "attention.sliding_window": 4}
    arch = family.gguf_architectures[0]
    values = {f"{arch}.{key}": value for key, value in (sound | changes).items()}
    values["general.architecture"] = arch
    tensors: Any = Shapes({"token_embd.weight": (5, 8)} | shapes)
    with contextlib.suppress(DejavuError):
        config = family.config_from_gguf(values, tensors)
        assert "embed.weight" in tensor_shapes(config)
        if config.position == "rope":
            assert np.isfinite(frequencies(config)).all()


@pytest.mark.real_model
def test_smollm2(smollm2_path: Path) -> None:
    model = open_model(smollm2_path)
    assert model.config == ModelConfig(
        family="llama",
        vocab_size=49152,
        d_model=576,
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        d_ff=1536,
        max_context=8192,
        norm_eps=float(np.float32(1e-5)),
        rope_theta=100000.0,
        bos_token_id=1,
        eos_token_ids=(2,),
    )
    assert model.weights.shape("layers.29.down.weight") == (576, 1536)
    assert model.weights.source_type("layers.0.q.weight") == "Q4_1"
    executor = ReferenceExecutor(model.config, model.weights)
    tokens: Any = model.metadata["tokenizer.ggml.tokens"]
    prompt = ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]
    step = np.array([tokens.index(text) for text in prompt], np.int32)
    cache = executor.new_cache()
    text = []
    for _ in range(2):
        step = executor.prefill(step, cache).argmax(axis=1).astype(np.int32)
        text.append(tokens[step[0]])
    assert text == ["ĠParis", "."]
