"""`LLM.from_pretrained` on a tiny real model, and what `import dejavu` does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dejavu.errors import DejavuError, InputError, SourceError
from dejavu.llm import LLM
from dejavu.opening import natural_codec
from dejavu.sampling import SamplingParams
from scripted import PROMPTS, TOKENIZER, VOCAB, chat
from tiny_tokenizer import CORPUS


class NamedWeights:
    """The part of `Weights` that `natural_codec` asks."""

    def __init__(self, types: dict[str, str]) -> None:
        self.types = types

    def names(self) -> list[str]:
        return list(self.types)

    def shape(self, name: str) -> tuple[int, ...]:
        return (64,) if "norm" in name else (64, 64)

    def source_type(self, name: str) -> str:
        return self.types[name]


@pytest.mark.parametrize(
    ("linears", "codec"),
    [
        (["Q4_0"], "int4"), (["Q4_1"], "int4"), (["Q4_K", "Q4_K", "Q6_K"], "int4"),
        (["Q5_K"], "int8"), (["Q5_0"], "int8"), (["Q6_K"], "int8"), (["Q8_0"], "int8"), (["F16"], "bf16"),
        (["BF16"], "bf16"), (["F32"], "bf16"),
    ],
)  # fmt: skip
def test_codec_that_suits_the_file(linears: list[str], codec: str) -> None:
    types = {"embed.weight": "Q8_0", "head.weight": "Q8_0"}
    for i, kind in enumerate(linears):
        types |= {f"layers.{i}.q.weight": kind, f"layers.{i}.attn_norm.weight": "F32"}
    assert natural_codec(NamedWeights(types)) == codec  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with the tiny tokenizer, in Hugging Face layout."""
    folder = tmp_path_factory.mktemp("tiny")
    d, ff, heads, kv_heads = 32, 48, 4, 2
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": d,
        "intermediate_size": ff, "num_hidden_layers": 2, "num_attention_heads": heads, "rms_norm_eps": 1e-5,
        "num_key_value_heads": kv_heads, "max_position_embeddings": 128, "vocab_size": VOCAB,
        "tie_word_embeddings": True, "rope_theta": 10000.0, "torch_dtype": "float32",
    }  # fmt: skip
    random = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (VOCAB, d), "model.norm.weight": (d,)}
    for i in range(2):
        layer = f"model.layers.{i}."
        k = d // heads * kv_heads
        for name, rows, columns in (("q", d, d), ("k", k, d), ("v", k, d), ("o", d, d)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, columns)
        for name, rows, columns in (("gate", ff, d), ("up", ff, d), ("down", d, ff)):
            shapes[f"{layer}mlp.{name}_proj.weight"] = (rows, columns)
        shapes |= {f"{layer}input_layernorm.weight": (d,), f"{layer}post_attention_layernorm.weight": (d,)}
    save_file(
        {
            name: (random.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
            for name, shape in shapes.items()
        },
        folder / "model.safetensors",
    )
    TOKENIZER.save(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def tiny_llm(tiny_model: Path) -> LLM:
    return LLM.from_pretrained(str(tiny_model), executor="reference", kv_dtype="f32")


def test_a_real_model_batched_forked_and_continued(tiny_llm: LLM) -> None:
    params = SamplingParams(seed=5, max_tokens=8, n=2, ignore_eos=True)
    together = tiny_llm.generate(PROMPTS, params)
    for prompt, result in zip(PROMPTS, together, strict=True):
        assert result.completions == tiny_llm.generate(prompt, params).completions
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    whole = tiny_llm.generate(CORPUS[0], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    conversation = tiny_llm.conversation()
    first = tiny_llm.chat(chat("hat"), greedy, conversation=conversation)
    messages = chat("hat", first.text, "the cat")
    second = tiny_llm.chat(messages, greedy, conversation=conversation)
    assert second.usage.cached_tokens > 0
    assert second.completions == tiny_llm.chat(messages, greedy).completions
    assert whole.timings.decode_tokens == 11
    assert whole.timings.ttft_s >= whole.timings.prefill_s > 0
    assert whole.timings.load_s > 0


def test_greedy_text_is_the_argmax_of_one_prefill_of_all_tokens(tiny_llm: LLM) -> None:
    result = tiny_llm.generate("the cat", SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    tokens = np.array(result.prompt_token_ids + result.completions[0].token_ids, np.int32)
    logits = tiny_llm.executor.prefill(tokens[:-1], tiny_llm.executor.new_cache(), all_logits=True)
    assert logits.argmax(axis=1)[-9:].tolist() == list(result.completions[0].token_ids)


def test_from_pretrained_refuses_unknown_options(tiny_model: Path) -> None:
    for options in (
        {"executor": "gpu"},
        {"executor": "reference", "codec": "int3"},
        {"executor": "reference", "context": 999},
    ):
        with pytest.raises(InputError):
            LLM.from_pretrained(str(tiny_model), **options)


@pytest.mark.parametrize(
    ("name", "value", "supported"),
    [
        ("model", None, "pypi:NAME"), ("model", 5, "pypi:NAME"), ("model", b"x", "pypi:NAME"),
        ("codec", "int3", "auto, f32, bf16, int8, int4"), ("codec", None, "auto, f32"), ("codec", 4, "int4"),
        ("kv_dtype", "f8", "f32, f16, bf16, int8"), ("kv_dtype", None, "f16"),
        ("executor", "gpu", "native, reference"), ("executor", None, "native, reference"),
        ("threads", "2", "1 to 1024"), ("threads", 2.5, "1 to 1024"), ("threads", 0, "1 to 1024"),
        ("threads", True, "1 to 1024"), ("plan", 5, "AccessPlan"), ("plan", ["off"], "AccessPlan"),
        ("fallback", "no", "True or False"), ("cache", None, "True or False"), ("offline", "yes", "True or False"),
        ("context", "100", "whole number"), ("context", 2.5, "whole number"), ("context", 1, "from 2"),
        ("max_batch", None, "whole number"), ("max_batch", 0, "from 1"), ("progress", 5, "start, advance, finish"),
    ],
)  # fmt: skip
def test_from_pretrained_says_what_an_argument_may_be(
    tiny_model: Path, name: str, value: object, supported: str
) -> None:
    options: dict[str, Any] = {"model": str(tiny_model), "executor": "reference", name: value}
    with pytest.raises(InputError, match=supported) as caught:
        LLM.from_pretrained(**options)
    assert caught.value.args[0].startswith(name)


def test_from_pretrained_takes_paths_and_numpy_numbers(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    llm = LLM.from_pretrained(
        Path(tiny_model.name),
        executor="reference",
        plan=None,
        context=np.int64(9),  # type: ignore[arg-type]
        max_batch=np.int32(2),  # type: ignore[arg-type]
        offline=np.bool_(True),  # type: ignore[arg-type]
    )
    assert (llm.context, llm.max_batch, llm.plan) == (9, 2, None)


@pytest.mark.parametrize("path", ["smollm2", "org/name", "pypi:name", "~/no-such-model"])
def test_a_path_is_no_name(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="no such file or folder"):
        LLM.from_pretrained(Path(path))


def test_without_the_compiled_core(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dejavu._core", None)
    monkeypatch.delattr("dejavu._core", raising=False)
    with pytest.raises(DejavuError, match="compiled core") as caught:
        LLM.from_pretrained(str(tiny_model), cache=False)
    assert caught.value.fix is not None
    assert "reference" in caught.value.fix


def test_importing_dejavu_imports_nothing_heavy() -> None:
    code = (
        "import sys, dejavu; assert 'LLM' in dir(dejavu); "
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'huggingface_hub'}; "
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys(); "
        "from dejavu import LLM, SamplingParams; assert 'jinja2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names() -> None:
    import dejavu

    for name in dejavu.__all__:
        assert getattr(dejavu, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        vars(dejavu)["__getattr__"]("nonsense")
