"""`dejavu adapt --frontier`: models of several densities by one run that can be interrupted, and what is to choose from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest

from dejavu.cli.app import run
from dejavu.errors import InputError
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, Sketch
from tiny_chat import build_tiny_chat
from training_texts import documents, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("torch")

from dejavu.adapt import distill, frontier, recipe, student

FRONTIER = "0.3,0.6"  # the gentlest is run first in any case
NAMES = ("0.6", "0.3")
CHECKPOINT_STEPS = 4


class StopError(Exception):
    """Ends a run where it is raised, as kill -9 would as far as the disk can tell."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frontier")
    build_tiny_chat(folder / "model")
    write_jsonl(folder / "text.jsonl", documents(300, 20))
    return folder


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "CHECKPOINT_STEPS", CHECKPOINT_STEPS)


def command(folder: Path, output: Path, *more: str, densities: str = FRONTIER) -> list[str]:
    text = ["--text", str(folder / "text.jsonl"), "-o", str(output), "--frontier", densities]
    fast = ["--tokens", "6000", "--learning-rate", "1e-3", "--batch-tokens", "256", "--threads", "1"]
    return ["adapt", str(folder / "model"), *text, *fast, "--json", *more]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that was not interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "CHECKPOINT_STEPS", CHECKPOINT_STEPS)
        assert run(command(folder, folder / "whole")) == 0
    return folder / "whole"


def adaptation(model: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((model / "adaptation.json").read_text())
    return found


def assert_same(output: Path, whole: Path) -> None:
    for name in NAMES:
        one, other = ((x / name / "model.safetensors").read_bytes() for x in (output, whole))
        assert one == other
        one_plan, other_plan = (AccessPlan.load(x / name / "plan").layers for x in (output, whole))
        assert [x.neurons for x in one_plan] == [x.neurons for x in other_plan]
        for key in ("tokens", "ppl_ratio", "densities"):
            assert adaptation(output / name)[key] == adaptation(whole / name)[key]
    assert (output / "frontier.json").exists()
    assert not output.with_name(f"{output.name}.checkpoint").exists()
    assert not list(output.glob(".*"))


def test_each_stage_goes_on_from_the_one_before(whole: Path) -> None:
    first, last = (adaptation(whole / name) for name in NAMES)
    for found, density, tokens in ((first, 0.6, 2000), (last, 0.3, 6000)):
        assert found["densities"] == pytest.approx([density] * 2, abs=0.03)
        assert found["native"]["density"] == pytest.approx(density, abs=0.05)
        assert tokens <= found["tokens"] < tokens + 600
    assert last["curve"][0]["tokens"] == first["tokens"]
    assert last["curve"][0]["density"] == pytest.approx(0.3, abs=0.05)
    # Twelve steps on random weights win little, and the first point's thresholds are of one batch.
    assert last["curve"][-1]["divergence"] < 1.1 * last["curve"][0]["divergence"]
    assert first["curve"][-1]["divergence"] < first["curve"][0]["divergence"]
    card = (whole / "0.3" / "README.md").read_text()
    assert "0.6 > 0.3" in card
    assert "adapted to density 0.6 the same masks cost" in card


def test_densities_anneal_from_those_of_the_stage_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []
    asked: list[float] = []
    paces: list[float] = []
    real, schedule = student.Student.step, student.schedule

    def step(self: student.Student, batches: Any, passes: Any, pace: float) -> float:
        loss = real(self, batches, passes, pace)
        seen.append((asked[-1], passes[0].densities[0]))
        paces.append(pace / schedule(asked[-1]))
        return loss

    def scheduled(done: float) -> float:
        asked.append(done)
        return schedule(done)

    monkeypatch.setattr(student.Student, "step", step)
    monkeypatch.setattr(distill, "schedule", scheduled)
    monkeypatch.setattr(distill, "ANNEAL", 0.5)
    assert run(command(folder, tmp_path / "out")) == 0
    starts = [i for i, (done, _) in enumerate(seen) if done == 0]
    assert len(starts) == 2
    assert seen[starts[0]][1] == 1
    assert seen[starts[1]][1] == pytest.approx(0.6, abs=0.05)
    assert seen[-1][1] == pytest.approx(0.3, abs=0.08)
    assert seen[starts[1] - 1][0] > 0.8  # of its own stage, by which the rate falls
    for first, name in zip(starts, NAMES, strict=True):
        before = adaptation(tmp_path / "out" / name)["curve"][0]["divergence"]
        assert paces[first] == pytest.approx(min(before / distill.FAR, 1))
    assert paces[starts[0]] < 1  # little is to be won at a density of 0.6


def test_frontier_holds_adapted_models_against_the_original(folder: Path, whole: Path) -> None:
    found = json.loads((whole / "frontier.json").read_text())
    kinds = [(row["kind"], row["target"]) for row in found["rows"]]
    assert kinds == [
        ("adapted", 0.6),
        ("adapted", 0.3),
        ("gentler", 0.6),
        ("training-free", 0.6),
        ("training-free", 0.3),
        ("dense", 1.0),
    ]
    for row in found["rows"]:
        assert row["density"] == pytest.approx(row["target"], abs=0.06)
        assert row["tokens_per_s"] > 0
        assert len(row["seconds"]) == found["repeats"]
        # A neuron takes 128 bytes; cut, leading bits that are read of all take 40, and the rest 128 (padded).
        read = 1 if row["kind"] == "dense" else 40 / 128 + row["density"]
        assert row["touched_share"] == pytest.approx(read, rel=0.02)
    assert found["rows"][0]["ppl_ratio"] == adaptation(whole / "0.6")["native"]["ppl_ratio"]
    assert not adaptation(whole / "0.6")["gentler"]
    (gentler,) = adaptation(whole / "0.3")["gentler"]
    assert (found["rows"][2]["model"], found["rows"][2]["plan"]) == ("0.3", "0.3/gentler/0.6")
    assert found["rows"][2]["ppl_ratio"] == gentler["ppl_ratio"]
    own, other = (AccessPlan.load(whole / found["rows"][i]["plan"]) for i in (1, 2))
    assert own.model == other.model
    assert all(
        isinstance(a.neurons, Sketch)
        and isinstance(b.neurons, Sketch)
        and a.neurons.threshold > b.neurons.threshold
        for a, b in zip(own.layers, other.layers, strict=True)
    )
    opened = open_model(folder / "model")
    fingerprint = opened.weights.fingerprint
    opened.close()
    plan = AccessPlan.load(whole / found["rows"][3]["plan"])
    assert plan.model == fingerprint
    assert all(isinstance(x.neurons, Sketch) and x.neurons.bits == 4 for x in plan.layers)


def test_picture_and_page(folder: Path, whole: Path) -> None:
    svg = (whole / "frontier.svg").read_text()
    ET.fromstring(svg)
    for text in ("Quality against bytes", "Quality against speed", "adapted", "dense original"):
        assert text in svg
    page = (whole / "README.md").read_text()
    assert "-m FOLDER/0.3\n" in page
    assert "-m FOLDER/0.3 --plan FOLDER/0.3/gentler/0.6\n" in page
    assert "| gentler/0.6 |" in (whole / "0.3" / "README.md").read_text()
    assert "-m model --codec int8 --plan FOLDER/training-free/0.6\n" in page
    assert page.count("| plans of the original |") == 2
    assert str(folder) not in page.replace(json.loads((whole / "frontier.json").read_text())["command"], "")


def test_the_report_shows_all_of_it(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    capsys.readouterr()
    assert run(["report", str(whole), "-o", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = json.loads((whole / "frontier.json").read_text())["rows"]
    assert [(s["name"], s["ratio"], s["speed"]) for s in told["frontier"]] == [
        (
            "dense" if row["kind"] == "dense" else f"{row['kind']} {row['target']}",
            pytest.approx(row["ppl_ratio"]),
            row["tokens_per_s"],
        )
        for row in rows
    ]
    assert {s["group"] for s in told["frontier"]} == {"dejavu, adapted", "dejavu, by a plan", "dejavu, dense"}
    assert page.read_text().count("Adaptation to sparse MLPs</h2>") == 2

    document = json.loads((whole / "frontier.json").read_text())
    document["rows"][0]["ppl_ratio"] = None
    (tmp_path / "frontier.json").write_text(json.dumps(document))
    assert run(["report", str(tmp_path / "frontier.json"), "-o", str(page)]) == InputError.exit_code
    assert "ppl_ratio" in capsys.readouterr().err


def in_step(number: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Stop before a step."""

    def interrupt(patch: pytest.MonkeyPatch) -> None:
        real = student.Student.step

        def step(self: student.Student, *args: Any) -> float:
            if self.steps == number:
                raise StopError
            return real(self, *args)

        patch.setattr(student.Student, "step", step)

    return interrupt


def before_first_model(patch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise StopError

    patch.setattr(recipe, "write_folder", stop)


def after_first_model(patch: pytest.MonkeyPatch) -> None:
    real = recipe.write_folder

    def write(*args: Any, **options: Any) -> None:
        real(*args, **options)
        raise StopError

    patch.setattr(recipe, "write_folder", write)


def before_the_comparison(patch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise StopError

    patch.setattr(recipe.Frontier, "measure", stop)


def in_the_comparison(patch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise StopError

    patch.setattr(frontier, "run_cases", stop)


@pytest.mark.parametrize(
    ("interrupt", "models"),
    [
        (in_step(5), []),
        (before_first_model, []),
        (after_first_model, ["0.6"]),
        (in_step(10), ["0.6"]),  # the checkpoint is still that of the end of the first stage
        (in_step(19), ["0.6"]),
        (before_the_comparison, ["0.3", "0.6"]),
        (in_the_comparison, ["0.3", "0.6", "training-free"]),
    ],
)
def test_interrupted_run_goes_on_as_if_it_was_not(
    folder: Path,
    whole: Path,
    tmp_path: Path,
    interrupt: Callable[[pytest.MonkeyPatch], None],
    models: list[str],
) -> None:
    output = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch)
        assert run(command(folder, output)) == 70
    assert sorted(p.name for p in output.glob("*")) == models
    assert run(command(folder, output)) == 8  # what is left of it is not overwritten
    half = output / ".0.3.123.tmp"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half of it")
    assert run(command(folder, output, "--resume")) == 0
    assert_same(output, whole)


def test_kill(folder: Path, whole: Path) -> None:
    output, checkpoint = folder / "killed", folder / "killed.checkpoint"
    program = (
        f"import sys; from dejavu.adapt import distill; distill.CHECKPOINT_STEPS = {CHECKPOINT_STEPS}; "
        "from dejavu.cli.app import run; run(sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, *command(folder, output)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        deadline = time.monotonic() + 120
        while not (output / "0.6").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert checkpoint.exists()
    assert run(command(folder, output, "--resume")) == 0
    assert_same(output, whole)


def test_other_densities_are_another_run_and_models_may_be_moved_away(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        after_first_model(patch)
        assert run(command(folder, tmp_path / "out")) == 70
    capsys.readouterr()
    assert run(command(folder, tmp_path / "out", "--resume", densities="0.6,0.2")) == 8
    assert "densities" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert (tmp_path / "out" / "0.6" / "model.safetensors").exists()
    with pytest.MonkeyPatch.context() as patch:
        in_step(19)(patch)
        assert run(command(folder, tmp_path / "out", "--resume")) == 70
    shutil.rmtree(tmp_path / "out" / "0.6")
    assert run(command(folder, tmp_path / "out", "--resume")) == 0
    found = json.loads((tmp_path / "out" / "frontier.json").read_text())
    assert [row["target"] for row in found["rows"] if row["kind"] == "adapted"] == [0.3]


def test_by_the_clock_and_to_dense(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ["--text", str(folder / "text.jsonl"), "-o", str(tmp_path / "out")]
    short = ["--hours", "0.001", "--frontier", "1,0.5", "--batch-tokens", "64", "--threads", "2", "--json"]
    assert run(["adapt", str(folder / "model"), *text, *short]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["target"] for row in found["rows"]] == [1, 0.5, 1, 1, 0.5, 1]
    seconds = [adaptation(tmp_path / "out" / name)["seconds"] for name in ("1", "0.5")]
    assert seconds[0] >= 1.1  # a third of 3.6 seconds: at least, steps are not cut
    assert seconds[1] - seconds[0] >= 2.3


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["--frontier", "0.5,0.5"], "must be distinct"),
        (["--frontier", "0.5,0.50"], "must be distinct"),
        (["--frontier", "0.5,0"], "density is 0;"),
        (["--frontier", "1.5"], "density is 1.5;"),
        (["--frontier", "nan"], "density is nan;"),
        (["--frontier", "0.5,half"], "not a list of densities"),
        (["--frontier", ""], "not a list of densities"),
        (["--frontier", "0.5", "--density", "0.5"], "only one of them"),
    ],
)
def test_densities_that_cannot_be(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wanted: list[str], message: str
) -> None:
    text = ["--text", str(folder / "text.jsonl"), "-o", str(tmp_path / "out"), "--tokens", "3000", "--json"]
    assert run(["adapt", str(folder / "model"), *text, *wanted]) == 8
    assert message in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not (tmp_path / "out").exists()
