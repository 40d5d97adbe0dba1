"""`dejavu plan logits`: logits from leading bits too, around the mean of what the head multiplies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu import LLM, SamplingParams
from dejavu.cli.app import run
from dejavu.errors import InputError, PlanError
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, Sketch, VocabularySketch
from dejavu.reference import ReferenceExecutor
from dejavu.tokenizer import Tokenizer
from dejavu.training import logits
from dejavu.training.corpus import Corpus
from dejavu.training.stream import TokenStream
from tiny_chat import build_tiny_chat
from training_texts import documents, write_jsonl

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logits")
    model = open_model(build_tiny_chat(folder / "model"))
    fingerprint = model.weights.fingerprint
    model.close()
    write_jsonl(folder / "text.jsonl", documents(60, 20))
    write_jsonl(folder / "short.jsonl", documents(2, 3))
    plans = {"plan": Sketch(bits=4, density=0.5), "dense": None}
    for name, neurons in plans.items():
        plan = AccessPlan.uniform(fingerprint, model.config.n_layers, neurons=neurons, name=name)
        plan.save(folder / name)
    return folder


def command(folder: Path, plan: str, output: Path, *more: str, text: str = "text.jsonl") -> list[str]:
    options = [
        "--text",
        str(folder / text),
        "-o",
        str(output),
        "--codec",
        "int8",
        "--verify-tokens",
        "500",
    ]
    return ["plan", "logits", str(folder / plan), str(folder / "model"), *options, "--json", *more]


def test_adds_the_mean_and_says_the_cost(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits, "CALIBRATION_TOKENS", 1000)
    assert run(command(folder, "plan", tmp_path / "out", "--exact", "20")) == 0
    told = json.loads(capsys.readouterr().out)
    before, after = (AccessPlan.load(path) for path in (folder / "plan", tmp_path / "out"))
    sketch = after.vocabulary
    assert isinstance(sketch, VocabularySketch)
    assert (sketch.bits, sketch.exact, after.name) == (4, 20, before.name)
    assert told["cost"] == after.evidence["vocabulary"]["cost"] == pytest.approx(1, abs=0.05)
    model = open_model(folder / "model")
    reference = ReferenceExecutor(model.config, model.weights, codec="int8")
    reference.set_plan(before)
    corpus = Corpus([folder / "text.jsonl"], seed=0)
    stream = TokenStream(corpus, Tokenizer.from_model(model), context=model.config.max_context)
    pieces = next(stream.batches(1000))[0]
    assert told["calibration"] == sum(map(len, pieces))
    found = [reference.trace(piece, want=("head_input", "chosen")).head_input for piece in pieces]
    model.close()
    expected = np.concatenate(found).mean(axis=0)
    share = told["mean_share"] * (np.concatenate(found) ** 2).sum(axis=1).mean()
    assert (expected**2).sum() == pytest.approx(share, rel=0.02)
    apart = np.concatenate(found) - sketch.mean
    assert sketch.directions.shape == (32, model.config.embed_dim)
    np.testing.assert_allclose(sketch.directions @ sketch.directions.T, np.eye(32), atol=1e-5)
    held = ((apart @ sketch.directions.T) ** 2).sum() / (apart**2).sum()
    assert told["direction_share"] == pytest.approx(held, abs=0.01)
    assert np.abs(sketch.mean - expected).max() <= 0.01 * np.abs(expected).max()
    params = SamplingParams(max_tokens=4, temperature=0)
    with LLM.from_pretrained(str(folder / "model"), codec="int8", plan=tmp_path / "out") as llm:
        assert len(llm.generate("the cat", params).completions[0].token_ids) == 4


def test_a_plan_of_logits_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits, "CALIBRATION_TOKENS", 1000)
    command_line = command(folder, "plan", tmp_path / "out", "--exact", "5")
    command_line[2] = "off"
    assert run(command_line) == 0
    found = AccessPlan.load(tmp_path / "out")
    assert {layer.neurons.kind for layer in found.layers} == {"dense"}
    assert "codec" not in found.evidence  # the head is int8 in int4 too
    assert json.loads(capsys.readouterr().out)["cost"] == pytest.approx(1, abs=0.05)
    command_line[-2:] = ["--codec", "bf16", "--force"]
    assert run(command_line) == InputError.exit_code
    assert "--codec int8 or int4" in capsys.readouterr().out


def test_all_exact_costs_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command(folder, "plan", tmp_path / "out", "--exact", "258")) == 0
    assert json.loads(capsys.readouterr().out)["cost"] == pytest.approx(1, abs=1e-6)


def test_the_cost_is_over_exact_logits(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(folder, "plan", tmp_path / "first", "--exact", "1")) == 0
    assert abs(json.loads(capsys.readouterr().out)["cost"] - 1) > 1e-5
    again = command(folder, "plan", tmp_path / "second", "--exact", "258")
    again[2] = str(tmp_path / "first")
    assert run(again) == 0
    assert json.loads(capsys.readouterr().out)["cost"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("plan", "text", "error", "message"),
    [
        ("plan", "short.jsonl", InputError, "at least 1024 are needed"),
        ("plan", "nowhere.jsonl", InputError, "nowhere.jsonl"),
    ],
)
def test_what_cannot_be(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    plan: str,
    text: str,
    error: Any,
    message: str,
) -> None:
    assert run(command(folder, plan, tmp_path / "out", text=text)) == error.exit_code
    assert message in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_more_exact_logits_than_tokens(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(command(folder, "plan", tmp_path / "out", "--exact", "259")) == InputError.exit_code
    assert "the model has 258 tokens" in capsys.readouterr().out
    monkeypatch.setattr(logits, "CALIBRATION_TOKENS", 1000)
    assert run(command(folder, "plan", tmp_path / "out")) == 0
    assert json.loads(capsys.readouterr().out)["exact"] == 258


def test_models_and_finished_plans_are_not_written_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits, "CALIBRATION_TOKENS", 1000)
    assert run(command(folder, "plan", folder / "model")) == InputError.exit_code
    assert "holds a model (config.json)" in capsys.readouterr().out
    assert not (folder / "model" / "plan.json").exists()
    AccessPlan.load(folder / "plan").save(tmp_path / "out")
    assert run(command(folder, "plan", tmp_path / "out", "--exact", "5")) == InputError.exit_code
    assert "--force" in json.loads(capsys.readouterr().out)["error"]["fix"]
    assert run(command(folder, "plan", tmp_path / "out", "--exact", "5", "--force")) == 0
    assert isinstance(AccessPlan.load(tmp_path / "out").vocabulary, VocabularySketch)


def test_the_plan_of_a_model_by_the_models_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(folder, "model", tmp_path / "out")
    assert run(arguments) == PlanError.exit_code
    assert "model has no plan of its own" in capsys.readouterr().out
    arguments[2] = "smollm2-sparse"
    assert run(arguments) == PlanError.exit_code  # read, and for another model
    assert "this one is" in capsys.readouterr().out
