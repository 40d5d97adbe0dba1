"""What `dejavu adapt` says when it cannot go on, and what is left then."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tiny_chat
from dejavu.cli.app import run
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, LayerPlan, LowRank, Random, Sketch, Threshold, VocabularySketch
from tiny_chat import build_tiny_chat
from training_texts import documents, write_jsonl

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")

from dejavu.adapt import aims, distill, student  # noqa: E402
from dejavu.training import checkpoint as checkpoints  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt")
    build_tiny_chat(folder / "model")
    write_jsonl(folder / "text.jsonl", documents(300, 20))
    return folder


@pytest.fixture
def refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the verb with more arguments, and returns the error that it reports."""

    def refused(*more: str, text: str = "text.jsonl", wanted: tuple[str, ...] = ("--density", ".5")) -> Any:
        always = ["adapt", str(folder / "model"), "--text", str(folder / text), "-o", str(tmp_path / "out")]
        assert run([*always, "--batch-tokens", "256", "--threads", "2", "--json", *wanted, *more]) not in (
            0,
            70,
        )
        assert not (tmp_path / "out").exists()
        return json.loads(capsys.readouterr().out)["error"]

    return refused


TOKENS = ("--tokens", "3000")


def test_options_that_do_not_go_together(refused: Any) -> None:
    assert "hours" in refused()["message"]
    assert "hours" in refused(*TOKENS, "--hours", "1")["message"]
    assert "density" in refused(*TOKENS, wanted=())["message"]
    assert "above 0" in refused(*TOKENS, "--density", "0")["message"]
    for rate in ("-1", "0", "nan", "0.2", "inf"):
        assert "learning rate" in refused(*TOKENS, "--learning-rate", rate)["message"]
    assert "leading values" in refused(*TOKENS, "--values", "leading", "--activation", "relu")["message"]
    assert "a twin has none" in refused(*TOKENS, "--bits", "3", "--activation", "relu")["message"]


def test_text_that_is_too_short_or_none(folder: Path, refused: Any) -> None:
    write_jsonl(folder / "short.jsonl", documents(10, 5))
    assert "at least 2048 are needed" in refused(*TOKENS, text="short.jsonl")["message"]
    (folder / "binary.txt").write_bytes(b"\xff\xfe" * 99)
    assert "UTF-8" in refused(*TOKENS, text="binary.txt")["message"]
    assert "no-such" in refused(*TOKENS, text="no-such.jsonl")["message"]


def test_no_torch(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    error = refused(*TOKENS)
    assert "adapting a model needs torch" in error["message"]
    assert error["fix"] == "pip install '.[train]' in a clone of dejavu"


def test_nothing_to_resume(refused: Any) -> None:
    assert "no checkpoint" in refused(*TOKENS, "--resume")["message"]


def test_an_output_that_is_there_stays(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("x")
    text, options = ["--text", str(folder / "text.jsonl")], ["--density", ".5", *TOKENS, "--json"]
    assert run(["adapt", str(folder / "model"), *text, "-o", str(tmp_path), *options]) == 8
    assert "is there already" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert (tmp_path / "mine.txt").exists()


def test_nan_leaves_the_checkpoint(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "CHECKPOINT_STEPS", 4)
    divergence = student.divergence
    calls = itertools.count()

    def breaks(*args: Any) -> Any:
        number, value = next(calls), divergence(*args)
        return value * float("nan") if number == 11 else value  # of two threads, in step 6

    monkeypatch.setattr(student, "divergence", breaks)
    error = refused(*TOKENS)
    assert error["type"] == "NumericsError"
    assert "--learning-rate" in error["fix"]
    arrays, state = checkpoints.load_checkpoint(tmp_path / "out.checkpoint", {})
    assert state["steps"] == 4
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_full_disk_leaves_the_checkpoint(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "CHECKPOINT_STEPS", 4)
    write, calls = checkpoints.write_safetensors, 0

    def full(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args)

    monkeypatch.setattr(checkpoints, "write_safetensors", full)
    error = refused(*TOKENS)
    assert error["type"] == "CacheError"
    assert "--resume" in error["fix"]
    assert checkpoints.load_checkpoint(tmp_path / "out.checkpoint", {})[1]["steps"] == 4


def test_teachers_that_do_not_fit(
    refused: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(folder / "model", tmp_path / "other") / "tokenizer.json"
    tokenizer = json.loads(other.read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    other.write_text(json.dumps(tokenizer))
    assert "other tokens" in refused(*TOKENS, "--teacher", str(other.parent))["message"]
    monkeypatch.setattr(tiny_chat, "LAYERS", 1)
    shallow = build_tiny_chat(tmp_path / "shallow")
    assert "another shape: layers.1." in refused(*TOKENS, "--teacher", str(shallow))["message"]


def test_plans_that_do_not_fit(refused: Any, folder: Path, tmp_path: Path) -> None:
    opened = open_model(folder / "model")
    model = opened.weights.fingerprint
    opened.close()
    zeros = {"a": np.zeros((2, 32), np.float32), "b": np.zeros((4, 2), np.float32)}
    heads = LowRank(**zeros, bias=np.zeros(4, np.float32), density=0.5)
    cases = {
        "is for model": AccessPlan(model="0" * 64, layers=(LayerPlan(), LayerPlan())),
        "selects heads": AccessPlan(model=model, layers=(LayerPlan(heads=heads),) * 2),
        "does not say the density": AccessPlan(
            model=model, layers=(LayerPlan(neurons=Threshold(threshold=0.1)),) * 2
        ),
        "has logits from leading bits": AccessPlan(
            model=model,
            layers=(LayerPlan(neurons=Threshold(density=0.5)),) * 2,
            vocabulary=VocabularySketch(bits=4, exact=10),
        ),
        "selector random": AccessPlan(model=model, layers=(LayerPlan(neurons=Random(density=0.5)),) * 2),
    }
    for number, (message, plan) in enumerate(cases.items()):
        plan.save(tmp_path / f"plan{number}")
        assert message in refused(*TOKENS, wanted=("--plan", str(tmp_path / f"plan{number}")))["message"]


def test_a_run_goes_on_only_under_its_own_selectors() -> None:
    maps = {"a": np.ones((2, 32), np.float32), "bias": np.zeros(4, np.float32), "density": 0.5}
    one, other = (LowRank(**maps, b=np.full((4, 2), size, np.float32)) for size in (1, 2))
    kinds = [
        Sketch(bits=4, density=0.5),
        Sketch(bits=3, density=0.5),
        Sketch(bits=4, density=0.5, lookahead=1),
        Sketch(bits=4, density=0.5, values="leading"),
        one,
        other,
    ]
    found = [json.dumps(aims.identity(selector)) for selector in kinds]
    assert len(set(found)) == len(kinds)
    assert aims.identity(Sketch(bits=4, threshold=0.2)) == json.loads(found[0])  # the run sets thresholds
