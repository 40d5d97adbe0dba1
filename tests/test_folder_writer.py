"""Models written as folders: read back as the same model, by dejavu and by transformers; whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.errors import CacheError, InputError, NumericsError, UnsupportedModelError
from dejavu.models import folder_writer
from dejavu.models.config import RopeScaling
from dejavu.models.folder_writer import write_folder
from dejavu.models.loading import open_model
from dejavu.tokenizer import Tokenizer
from tiny_models import CASES, build, prompt, relative_error, transformers_logits
from tiny_relu import CONFIG, half_dead
from tiny_tokenizer import train_byte_level

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SAME_OPTIONS = {"llama-long", "llama-blocks", "llama-tail"}  # as others


@pytest.mark.parametrize("name", sorted(CASES.keys() - SAME_OPTIONS))
def test_a_folder_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    build(case, tmp_path / "original")
    model = open_model(tmp_path / "original")
    write_folder(tmp_path / "copy", model.config, model.weights.read)
    copy = open_model(tmp_path / "copy")
    assert copy.config == model.config
    assert list(copy.weights.names()) == list(model.weights.names())
    for tensor in model.weights.names():
        np.testing.assert_array_equal(copy.weights.read(tensor), model.weights.read(tensor))


@pytest.mark.parametrize(
    "name",
    ["qwen2-window", "mistral", "gemma3-scaled", "opt-350m", "bloom", "neox", "falcon", "rope-yarn-mscale"],
)
def test_transformers_reads_the_same_model(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    build(case, tmp_path / "original")
    model = open_model(tmp_path / "original")
    write_folder(tmp_path / "copy", model.config, model.weights.read)
    tokens = prompt(case)[:9]
    logits = [transformers_logits(tmp_path / folder, tokens, 9) for folder in ("original", "copy")]
    assert relative_error(*logits) < 1e-6


@pytest.mark.parametrize(("codec", "step"), [("f32", 0.0), ("bf16", 2.0**-8), ("f16", 2.0**-11)])
def test_weights_are_rounded_to_the_codec(codec: Any, step: float, tmp_path: Path) -> None:
    weights = half_dead()
    write_folder(tmp_path / "m", CONFIG, weights.read, codec=codec)
    copy = open_model(tmp_path / "m")
    for name in weights.names():
        found, wanted = copy.weights.read(name), weights.read(name)
        assert (np.abs(found - wanted) <= step * np.abs(wanted) + 1e-7).all()
    assert copy.weights.source_type("layers.0.up.weight").lower() == codec


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    tokenizer = Tokenizer(train_byte_level(), eos_ids=[0])
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    write_folder(tmp_path / "m", config, half_dead(config).read, add_files=tokenizer.save)
    copy = Tokenizer.from_model(open_model(tmp_path / "m"))
    assert copy.encode("some words") == tokenizer.encode("some words")


def test_a_model_is_replaced_by_force_only(tmp_path: Path) -> None:
    target, read = tmp_path / "m", half_dead().read
    write_folder(target, CONFIG, read)
    before = (target / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists"):
        write_folder(target, CONFIG, lambda name: 2 * read(name))
    assert (target / "model.safetensors").read_bytes() == before
    write_folder(target, CONFIG, lambda name: 2 * read(name), force=True)
    assert (target / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_model_is_never_replaced(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    kept = target / "thesis.tex" if kind == "folder" else target
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("years of work")
    with pytest.raises(InputError, match="not a model's folder"):
        write_folder(target, CONFIG, half_dead().read, force=True)
    assert kept.read_text() == "years of work"


def test_a_model_with_other_things_beside_it_is_never_replaced(tmp_path: Path) -> None:
    target, read = tmp_path / "m", half_dead().read
    write_folder(target, CONFIG, read)
    (target / "plan").mkdir()
    (target / "tokenizer.json").write_text("{}")
    write_folder(target, CONFIG, read, force=True)  # all of that was a model's
    for other in (".git", "checkpoint-500"):
        (target / other).mkdir()
        (target / other / "precious").write_text("years of work")
        with pytest.raises(InputError, match=rf"more than a model \({other}\)"):
            write_folder(target, CONFIG, read, force=True)
        (target / other / "precious").unlink()
        (target / other).rmdir()


def test_what_lies_there_when_the_model_is_written_stays(tmp_path: Path) -> None:
    target = tmp_path / "m"

    def meanwhile(_: Path) -> None:
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")

    with pytest.raises(InputError, match="exists"):
        write_folder(target, CONFIG, half_dead().read, add_files=meanwhile)
    assert [path.name for path in target.iterdir()] == ["thesis.tex"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CacheError, match="No space left") as info:
        write_folder(tmp_path / "m", CONFIG, half_dead().read, add_files=full)
    assert "free some space" in str(info.value.fix)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("codec", "value"), [("f32", np.nan), ("bf16", np.inf), ("f16", 1e5)])
def test_values_that_cannot_be_stored_are_refused(codec: Any, value: float, tmp_path: Path) -> None:
    weights = half_dead()
    weights.tensors["layers.1.down.weight"][3, 4] = value
    with pytest.raises(NumericsError, match=r"layers\.1\.(down|fc2)"):
        write_folder(tmp_path / "m", CONFIG, weights.read, codec=codec)
    assert not list(tmp_path.iterdir())


def test_a_configuration_that_a_folder_cannot_say_is_refused(tmp_path: Path) -> None:
    build(CASES["llama"], tmp_path / "original")
    model = open_model(tmp_path / "original")
    factors = dataclasses.replace(model.config, rope_scaling=RopeScaling(freq_factors=(1.0, 2.0)))
    for config in (factors, dataclasses.replace(model.config, embed_scale=3.0)):
        with pytest.raises(UnsupportedModelError, match=r"cannot say (rope_scaling|embed_scale)"):
            write_folder(tmp_path / "m", config, model.weights.read)


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_names: list[str] = []
    written: list[int] = []
    monkeypatch.setattr(
        folder_writer, "as_floats", lambda values, *_: written.append(len(read_names)) or values.astype("<f4")
    )
    weights = half_dead()

    def read(name: str) -> NDArray[np.float32]:
        read_names.append(name)
        return weights.read(name)

    write_folder(tmp_path / "m", CONFIG, read)
    assert written == list(range(1, len(read_names) + 1))
    assert sorted(read_names) == sorted(weights.names())
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == "float32"
