"""`dejavu convert`: the same logits and the same tokens from another file."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from dejavu.cli.app import run
from dejavu.conversion import convert, convert_to_delta
from dejavu.errors import InputError, ModelFormatError, UnsupportedModelError
from dejavu.gguf_tokenizer_writer import tokenizer_metadata
from dejavu.models.folder_writer import write_folder
from dejavu.models.gguf import GgufFile
from dejavu.models.loading import open_model
from dejavu.reference import ReferenceExecutor
from dejavu.tokenizer import Tokenizer
from test_tokenizer import spm_metadata
from tiny_gated import configured, random_weights
from tiny_models import relative_error
from tiny_tokenizer import byte_level_metadata

if TYPE_CHECKING:
    from pathlib import Path

    from dejavu.models.config import ModelConfig

TEXT = "the cat sat on the mat, naïve café 1234 + 中文 😀\n\n\tx  y<s>"
TEMPLATE = "{{ messages }}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a FATReLU model and a byte-level tokenizer with a chat template."""
    return written(tmp_path / "model", configured("fatrelu"))


def written(folder: Path, config: ModelConfig) -> Path:
    tokenizer = Tokenizer.from_gguf(byte_level_metadata())
    config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size + 5, d_ff=160)
    write_folder(folder, config, random_weights(config).read, add_files=tokenizer.save)
    return folder


def logits(path: Path) -> np.ndarray:
    model = open_model(path)
    executor = ReferenceExecutor(model.config, model.weights)
    tokens = np.array(Tokenizer.from_model(model).encode(TEXT), np.int32)
    found = executor.prefill(tokens, executor.new_cache(), all_logits=True)
    model.close()
    return found


@pytest.mark.parametrize(
    ("codec", "limit"),
    [
        ("f32", 0),
        ("f16", 1e-2),
        ("bf16", 5e-2),
        ("q8_0", 5e-2),
        ("q4_0", 0.8),
        ("q4_1", 0.8),
    ],  # FATReLU jumps
)
def test_folder_to_gguf_and_back(codec: Any, limit: float, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    result = convert(model, file, codec=codec)
    assert (result.format, result.codec, result.bytes) == ("gguf", codec, file.stat().st_size)
    assert relative_error(logits(file), logits(model)) <= limit
    back = convert(file, tmp_path / "back")
    assert (back.format, back.codec) == ("safetensors", "f32")
    assert relative_error(logits(tmp_path / "back"), logits(file)) <= 1e-6
    tokenizers = [Tokenizer.from_model(open_model(path)) for path in (model, file, tmp_path / "back")]
    for tokenizer in tokenizers:
        assert tokenizer.encode(TEXT) == tokenizers[0].encode(TEXT)
        assert tokenizer.decode(tokenizer.encode(TEXT)) == tokenizers[0].decode(tokenizers[0].encode(TEXT))
        assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.chat_template) == (1, (0,), TEMPLATE)
    assert open_model(file).config.activation == "fatrelu"


@pytest.mark.parametrize(("codec", "limit"), [("f32", 0), ("bf16", 5e-2), ("f16", 1e-2)])
def test_folder_to_folder(codec: Any, limit: float, model: Path, tmp_path: Path) -> None:
    others = ("special_tokens_map.json", "added_tokens.json", "LICENSE", "NOTICE")
    for name in others:
        (model / name).write_text("{}")
    convert(model, tmp_path / "copy", codec=codec)
    assert relative_error(logits(tmp_path / "copy"), logits(model)) <= limit
    for name in ("tokenizer.json", "tokenizer_config.json", *others):
        assert (tmp_path / "copy" / name).read_bytes() == (model / name).read_bytes()


def test_gguf_to_gguf_keeps_the_tokenizer_and_who_made_it(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "a.gguf", codec="f16")
    convert(tmp_path / "a.gguf", tmp_path / "b.gguf", codec="q8_0")
    first, second = (GgufFile(tmp_path / name).metadata for name in ("a.gguf", "b.gguf"))
    changed = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
    assert changed == {"general.file_type"}
    assert second["general.name"] == "model"


def test_transformers_reads_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    source = written(tmp_path / "model", dataclasses.replace(configured("relu"), family="llama"))
    convert(source, tmp_path / "m.gguf", codec="f32")
    convert(tmp_path / "m.gguf", tmp_path / "copy")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")
    ids = tokenizer(TEXT)["input_ids"]
    assert ids == Tokenizer.from_folder(tmp_path / "copy").encode(TEXT)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "copy", attn_implementation="eager")
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    assert relative_error(logits(tmp_path / "copy"), theirs) <= 1e-5


def test_all_that_ends_a_text_survives(model: Path, tmp_path: Path) -> None:
    """From both files of a folder; beyond three places only what is known by its text (here <|end|>)."""

    def convert_with(config_ends: list[int], generation_ends: list[int]) -> set[int]:
        config = json.loads((model / "config.json").read_text()) | {"eos_token_id": config_ends}
        (model / "config.json").write_text(json.dumps(config))
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": generation_ends}))
        convert(model, tmp_path / "m.gguf", force=True)
        return set(Tokenizer.from_gguf(GgufFile(tmp_path / "m.gguf").metadata).eos_ids)

    assert convert_with([0, 7], [0]) == {0, 7}
    assert convert_with([9], [0, 7]) == {0, 7, 9}
    with pytest.raises(UnsupportedModelError, match="no place for all 4"):
        convert_with([7, 8, 9], [0])
    names = json.loads((model / "tokenizer_config.json").read_text()) | {"eos_token": "<s>"}
    (model / "tokenizer_config.json").write_text(json.dumps(names))
    assert convert_with([0, 8], [0, 9]) == {1, 0, 8, 9}


def test_a_sentencepiece_tokenizer_survives_both_ways(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(spm_metadata())
    tokenizer.save(tmp_path)
    metadata = tokenizer_metadata(Tokenizer.from_folder(tmp_path), tokenizer.vocab_size + 3)
    copy = Tokenizer.from_gguf(metadata)
    for text in ("abc ab a", " b  c", "é中\n", "<s>ab</s>"):
        assert copy.encode(text) == tokenizer.encode(text)
        assert copy.decode(copy.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert len(metadata["tokenizer.ggml.tokens"]) == tokenizer.vocab_size + 3


@pytest.mark.parametrize(
    "pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "dbrx", "tekken", "bloom", "default"]
)
def test_ways_to_cut_text_are_recognised(pre: str, tmp_path: Path) -> None:
    Tokenizer.from_gguf(byte_level_metadata(pre=pre)).save(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer_metadata(tokenizer, tokenizer.vocab_size)["tokenizer.ggml.pre"] == pre


def test_tokenizers_that_gguf_cannot_say_are_refused() -> None:
    odd = Tokenizer.from_gguf(byte_level_metadata())
    odd.backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words = Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.decoder = odd.backend.decoder
    for tokenizer, message in ((odd, "cuts text in a way"), (Tokenizer(words), "of type WordLevel")):
        with pytest.raises(UnsupportedModelError, match=message):
            tokenizer_metadata(tokenizer, 500)


def test_wrong_calls_are_refused_before_anything_is_read(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="f32, bf16, f16"):
        convert(model, tmp_path / "m", codec="q8_0")
    with pytest.raises(InputError, match="is the model itself"):
        convert(model, model, force=True)
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelFormatError, match="no tokenizer"):
        convert(model, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.gguf"
    command = ["convert", str(model), "-o", str(out), "--json"]
    assert run(command) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == {
        "model": str(model),
        "path": str(out),
        "format": "gguf",
        "codec": "q8_0",
        "bytes": out.stat().st_size,
    }
    assert run(command) == InputError.exit_code
    assert "exists" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert run([*command, "--force", "--codec", "f16"]) == 0
    assert json.loads(capsys.readouterr().out)["codec"] == "f16"
    assert run(["convert", str(model), "-o", str(tmp_path / "x"), "--format", "gguf"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'x'}: gguf, q8_0, ")


@pytest.mark.real_model
def test_the_default_model_keeps_its_tokenizer(smollm2_path: Path, tmp_path: Path) -> None:
    model = open_model(smollm2_path)
    Tokenizer.from_model(model).save(tmp_path)
    metadata = tokenizer_metadata(Tokenizer.from_folder(tmp_path), model.config.vocab_size)
    for key in ("model", "pre", "tokens", "merges", "token_type", "bos_token_id", "eos_token_id"):
        assert metadata[f"tokenizer.ggml.{key}"] == model.metadata[f"tokenizer.ggml.{key}"]
    assert metadata["tokenizer.chat_template"] == model.metadata["tokenizer.chat_template"]


def test_names_that_say_another_format_are_refused(model: Path, tmp_path: Path) -> None:
    assert convert(model, tmp_path / "M.GGUF").format == "gguf"
    assert open_model(tmp_path / "M.GGUF").format == "gguf"
    assert run(["info", str(tmp_path / "M.GGUF")]) == 0
    for name in ("m.gguf", "m.Gguf"):
        with pytest.raises(InputError, match="safetensors is a folder"):
            convert(model, tmp_path / name, format="safetensors")
        with pytest.raises(InputError, match="delta is a folder"):
            convert_to_delta(model, tmp_path / name, "base", model)
        assert not (tmp_path / name).exists()


def test_a_delta_of_the_base_itself(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is the base itself"):
        convert_to_delta(model, tmp_path / "delta", str(model), model)
    assert not (tmp_path / "delta").exists()
