"""`dejavu adapt --activation`: from a SiLU model to a twin whose exact zeros are left out exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu import LLM
from dejavu.cli.app import run
from dejavu.engine import NativeExecutor
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, LayerPlan, Threshold
from dejavu.reference import ReferenceExecutor
from dejavu.training import checkpoint as checkpoints
from tiny_chat import build_tiny_chat
from tiny_models import relative_error
from tolerances import TOLERANCES
from training_texts import documents, write_jsonl

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")

from dejavu.adapt import distill, student
from dejavu.adapt.regress import Regressor

TOKENS = np.random.default_rng(3).integers(0, 200, 24).astype(np.int32)


class StopError(Exception):
    """Ends a run where it is raised, as kill -9 would as far as the disk can tell."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twin")
    build_tiny_chat(folder / "model")
    write_jsonl(folder / "text.jsonl", documents(400, 20))
    return folder


def command(folder: Path, output: Path, *more: str, tokens: int = 12_000, kind: str = "relu") -> list[str]:
    text = ["--text", str(folder / "text.jsonl"), "-o", str(output), "--activation", kind]
    fast = ["--tokens", str(tokens), "--learning-rate", "2e-3", "--batch-tokens", "256", "--threads", "1"]
    return ["adapt", str(folder / "model"), *text, *fast, "--json", *(more or ("--density", "0.25"))]


@pytest.fixture(scope="module", params=["relu", "shifted", "fatrelu", "drelu"])
def twin(folder: Path, request: pytest.FixtureRequest) -> Path:
    output = folder / str(request.param)
    assert run(command(folder, output, kind=request.param)) == 0
    return output


def figures(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "adaptation.json").read_text())
    return found


def test_learns_with_few_open_gates(folder: Path, twin: Path) -> None:
    found = figures(twin)
    curve, regression = found["curve"], found["regression"]
    assert curve[0]["tokens"] == 0
    assert 2400 <= regression["tokens"] < 3000
    assert regression["divergence"] < 0.8 * curve[0]["divergence"]  # at the natural density
    assert regression["density"] > 0.4
    fewer, last = (point for point in curve if point["tokens"] != 0 and point != regression)
    assert fewer["tokens"] == regression["tokens"]
    assert found["tokens"] == last["tokens"] >= 12_000
    assert last["divergence"] < 0.8 * fewer["divergence"]
    assert found["densities"] == pytest.approx([0.25, 0.25], abs=0.02)
    assert found["native"]["densities"] == pytest.approx([0.25, 0.25], abs=0.03)
    assert found["native"]["ppl_ratio"] == pytest.approx(found["ppl_ratio"], rel=0.1)
    assert not list(folder.glob(f"{twin.name}*.checkpoint"))


def test_card_says_the_recipe(twin: Path) -> None:
    card = (twin / "README.md").read_text()
    assert f"- first: --activation {twin.name}: each MLP by itself" in card
    assert "makes exact zeros" in card
    assert f"no training it was {figures(twin)['curve'][0]['ratio']:.3f}" in card


@pytest.mark.parametrize("codec", ["f32", "bf16", "int8"])
def test_zeros_are_left_out_exactly(twin: Path, codec: Any) -> None:
    opened = open_model(twin)
    plan = AccessPlan.load(twin / "plan", fingerprint=opened.weights.fingerprint)
    assert len(plan.layers) == opened.config.n_layers
    assert all(isinstance(x.neurons, Threshold) and x.neurons.threshold == 0 for x in plan.layers)
    native = NativeExecutor.load(twin, codec=codec, kv_dtype="f32", threads=2, cache=False)
    reference = ReferenceExecutor(opened.config, opened.weights, codec=codec)
    natural = (reference.trace(TOKENS).gate[..., : opened.config.d_ff] != 0).mean(axis=(1, 2))
    for executor in (native, reference):
        logits = []
        for wanted in (None, plan):
            executor.set_plan(wanted)
            cache = executor.new_cache()
            logits.append(np.concatenate([executor.decode(token[None], [cache]) for token in TOKENS]))
        assert relative_error(logits[1], logits[0]) <= TOLERANCES[f"twin_zeros_{codec}"]
    trace = reference.trace(TOKENS)
    assert (trace.hidden == 0).mean() > 0.6
    np.testing.assert_allclose(natural, [0.25, 0.25], atol=0.08)  # of other text
    opened.close()
    native.close()


@pytest.mark.parametrize("codec", ["auto", "bf16"])
def test_opens_with_its_plan(twin: Path, codec: Any) -> None:
    with LLM.from_pretrained(str(twin), codec=codec, plan="auto", fallback=False) as llm:
        assert llm.plan is not None
        assert llm.plan.model == AccessPlan.load(twin / "plan").model
        assert llm.generate("the cat").text


def test_transformers_agrees(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    output = folder / "relu"
    if not output.exists():
        assert run(command(folder, output)) == 0
    assert json.loads((output / "config.json").read_text())["hidden_act"] == "relu"
    model = transformers.AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0].numpy()
    opened = open_model(output)
    reference = ReferenceExecutor(opened.config, opened.weights)
    assert relative_error(reference.prefill(TOKENS, reference.new_cache(), all_logits=True), expected) < 1e-5
    opened.close()


@pytest.mark.parametrize("kind", [Regressor, student.Student])
def test_resumed_run_is_exactly_the_run(
    folder: Path, kind: type[student.Student], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(distill, "CHECKPOINT_STEPS", 2)
    assert run(command(folder, tmp_path / "whole", tokens=6000)) == 0
    step = student.Student.step

    def stop(self: student.Student, *args: Any) -> float:
        if type(self) is kind and self.steps == 3:
            raise StopError
        return step(self, *args)

    monkeypatch.setattr(student.Student, "step", stop)
    parts = tmp_path / "parts"
    assert run(command(folder, parts, tokens=6000)) == 70
    assert (tmp_path / "parts.regression.checkpoint").exists()
    assert (tmp_path / "parts.checkpoint").exists() == (kind is student.Student)
    monkeypatch.setattr(student.Student, "step", step)
    assert run(command(folder, parts, tokens=6000)) == 8  # what is left of it is not overwritten
    assert run(command(folder, parts, "--density", "0.3", "--resume", tokens=6000)) == 8
    assert run(command(folder, parts, "--density", "0.25", "--resume", tokens=6000)) == 0
    whole, found = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "parts"))
    assert whole == found
    assert [(p["tokens"], p["ratio"]) for p in figures(tmp_path / "whole")["curve"]] == [
        (p["tokens"], p["ratio"]) for p in figures(parts)["curve"]
    ]
    assert not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.parametrize("name", ["killed.regression.checkpoint", "killed.checkpoint"])
def test_kill_and_resume(folder: Path, name: str, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    program = (
        "import sys; from dejavu.adapt import distill; distill.CHECKPOINT_STEPS = 3; "
        "from dejavu.cli.app import run; run(sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, *command(folder, output, tokens=6000)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / name).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    assert not output.exists()
    assert run(command(folder, output, "--density", "0.25", "--resume", tokens=6000)) == 0
    assert figures(output)["densities"] == pytest.approx([0.25, 0.25], abs=0.03)


def test_nan_leaves_the_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distill, "CHECKPOINT_STEPS", 2)
    learn = Regressor._learn

    def breaks(self: Regressor, *args: Any) -> float:
        return learn(self, *args) * (float("nan") if self.steps == 3 else 1.0)

    monkeypatch.setattr(Regressor, "_learn", breaks)
    assert run(command(folder, tmp_path / "out", tokens=6000)) == 9
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "NumericsError"
    assert "--learning-rate" in error["fix"]
    arrays, state = checkpoints.load_checkpoint(tmp_path / "out.regression.checkpoint", {})
    assert state["steps"] == 2
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_ends_when_the_time_is_up(folder: Path, tmp_path: Path) -> None:
    text = ["--text", str(folder / "text.jsonl"), "-o", str(tmp_path / "timed"), "--activation", "relu"]
    short = ["--hours", "0.0005", "--density", "0.3", "--batch-tokens", "64", "--threads", "2", "--json"]
    assert run(["adapt", str(folder / "model"), *text, *short]) == 0
    found = figures(tmp_path / "timed")
    assert 0.36 <= found["regression"]["seconds"] < found["curve"][-1]["seconds"] < 30


def test_several_densities(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "frontier"
    assert run(command(folder, output, "--frontier", "0.4,0.2", tokens=5000)) == 0
    for density in (0.4, 0.2):
        found = figures(output / f"{density:g}")
        assert found["native"]["densities"] == pytest.approx([density] * 2, abs=0.05)
        assert AccessPlan.load(output / f"{density:g}" / "plan").layers[0].neurons.kind == "threshold"


def test_what_does_not_go_together(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*more: str, kind: str = "relu") -> dict[str, Any]:
        assert run(command(folder, tmp_path / "out", *more, kind=kind)) == 8
        found: dict[str, Any] = json.loads(capsys.readouterr().out)["error"]
        return found

    assert "keep, relu, shifted, fatrelu, drelu" in refused(kind="elu")["message"]
    plan = AccessPlan(model="0" * 64, layers=(LayerPlan(),))
    plan.save(tmp_path / "plan")
    assert "gates select them" in refused("--plan", str(tmp_path / "plan"))["message"]
    (tmp_path / "out.checkpoint").touch()  # of a run that kept the activation
    assert "out.checkpoint is left" in refused()["message"]
    assert "no checkpoint" in refused("--density", "0.3", "--resume")["message"]
