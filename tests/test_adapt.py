"""`dejavu adapt` from a model and text to a folder that generates by its plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu import LLM, SamplingParams
from dejavu.cli.app import run
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, LayerPlan, Oracle, Sketch, Threshold
from tiny_chat import D, build_tiny_chat
from training_texts import documents, write_jsonl

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")

from dejavu.adapt import distill, student

DENSITY = ("--density", "0.25")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt")
    build_tiny_chat(folder / "model")
    write_jsonl(folder / "text.jsonl", documents(400, 20))
    return folder


def command(folder: Path, output: Path, *more: str, tokens: int = 12_000) -> list[str]:
    text = ["--text", str(folder / "text.jsonl"), "-o", str(output)]
    fast = ["--tokens", str(tokens), "--learning-rate", "2e-3", "--batch-tokens", "256", "--threads", "1"]
    return ["adapt", str(folder / "model"), *text, *fast, "--json", *more]


@pytest.fixture(scope="module")
def adapted(folder: Path) -> dict[str, Any]:
    output = folder / "adapted"
    assert run(command(folder, output, *DENSITY)) == 0
    found: dict[str, Any] = json.loads((output / "adaptation.json").read_text())
    return found


def test_learns_under_its_masks(folder: Path, adapted: dict[str, Any]) -> None:
    before, after = adapted["curve"][0], adapted["curve"][-1]
    assert (before["tokens"], before["density"]) == (0, pytest.approx(0.25, abs=0.02))
    assert after["tokens"] >= 12_000
    assert after["divergence"] < 0.9 * before["divergence"]
    assert adapted["divergence"] < 0.9 * before["divergence"]  # on other text
    assert adapted["densities"] == pytest.approx([0.25, 0.25], abs=0.02)
    assert not (folder / "adapted.checkpoint").exists()


def test_native_engine_sees_what_was_trained(folder: Path, adapted: dict[str, Any]) -> None:
    native = adapted["native"]
    assert native["densities"] == pytest.approx(adapted["densities"], abs=0.03)
    assert native["ppl_ratio"] == pytest.approx(adapted["ppl_ratio"], rel=0.1)  # of a perplexity of 10^6
    plan = AccessPlan.load(folder / "adapted" / "plan")
    assert plan.evidence["ppl_ratio"] == native["ppl_ratio"]
    assert all(isinstance(x.neurons, Sketch) and x.neurons.bits == 4 for x in plan.layers)


def test_goes_on_with_the_original_as_teacher(folder: Path, adapted: dict[str, Any]) -> None:
    again = [
        str(folder / "adapted") if x == str(folder / "model") else x
        for x in command(folder, folder / "further")
    ]
    assert run([*again, *DENSITY, "--teacher", str(folder / "model")]) == 0
    found = json.loads((folder / "further" / "adaptation.json").read_text())
    assert found["teacher"] == "model"
    assert found["native"]["base_ppl"] == adapted["native"]["base_ppl"]
    # Nothing is lost between the runs but what float16 does not hold, and thresholds of less text.
    assert found["curve"][0]["divergence"] == pytest.approx(adapted["curve"][-1]["divergence"], rel=0.05)
    assert found["divergence"] < adapted["divergence"]
    card = (folder / "further" / "README.md").read_text()
    assert "base_model: adapted\n" in card
    assert "predicts as model does" in card


def test_native_engine_sees_leading_values(folder: Path) -> None:
    more = ("--values", "leading", "--threads", "1")
    assert run(command(folder, folder / "leading", *DENSITY, *more, tokens=3000)) == 0
    found = json.loads((folder / "leading" / "adaptation.json").read_text())
    native = found["native"]
    assert native["densities"] == pytest.approx(found["densities"], abs=0.03)
    assert native["ppl_ratio"] == pytest.approx(found["ppl_ratio"], rel=0.1)
    # Bytes of a neuron: rows of codes with a scale, padded to 64; leading bits are padded with those of fifteen others.
    whole, lead, down = 128, 2 * -(-16 * (D // 2 + 2) // 64) * 64 / 16, D + 2
    assert native["touched_share"] == pytest.approx((lead + native["density"] * down) / whole, rel=0.02)


def test_adapted_folder_generates(folder: Path, adapted: dict[str, Any]) -> None:
    output = folder / "adapted"
    messages = [{"role": "user", "content": "the cat"}]
    params = SamplingParams(max_tokens=6, temperature=0)
    with LLM.from_pretrained(str(output), codec="int8", plan=output / "plan") as llm:
        assert llm.generate("the cat", params).text
        rendered = llm.render_chat(messages)
    with LLM.from_pretrained(str(folder / "model")) as base:
        assert rendered == base.render_chat(messages)
        assert base.tokenizer.encode("two hats") == llm.tokenizer.encode("two hats")


def test_transformers_reads_the_folder(folder: Path, adapted: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "adapted", dtype=torch.float32)
    opened = open_model(folder / "adapted")
    weight = opened.weights.read("layers.1.down.weight")
    opened.close()
    np.testing.assert_array_equal(model.model.layers[1].mlp.down_proj.weight.detach().numpy(), weight)


def test_card_says_where_it_comes_from(folder: Path, adapted: dict[str, Any]) -> None:
    card = (folder / "adapted" / "README.md").read_text()
    assert "base_model: model\n" in card
    assert "license: unknown\n" in card
    assert f"{adapted['native']['ppl_ratio']:.4f}" in card
    assert (folder / "adapted" / "curve.svg").read_text().startswith("<svg")
    assert str(folder) not in card.replace(adapted["command"], "")


def test_kill_and_resume_gives_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "CHECKPOINT_STEPS", 7)  # where sketches are made anew
    assert run(command(folder, folder / "unbroken", *DENSITY)) == 0
    output = folder / "killed"
    checkpoint = folder / "killed.checkpoint"
    program = (
        "import sys; from dejavu.adapt import distill; distill.CHECKPOINT_STEPS = 7; "
        "from dejavu.cli.app import run; run(sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, *command(folder, output, *DENSITY)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert checkpoint.exists()
    assert not output.exists()
    assert run(command(folder, output, *DENSITY)) == 8  # what is left of it is not overwritten
    assert run(command(folder, output, *DENSITY, "--learning-rate", "1e-3", "--resume")) == 8
    assert run(command(folder, output, *DENSITY, "--resume")) == 0
    unbroken, again = ((folder / name / "model.safetensors").read_bytes() for name in ("unbroken", "killed"))
    assert unbroken == again


@pytest.mark.parametrize("values", ["exact", "leading"])
def test_resumed_run_is_exactly_the_run(folder: Path, values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "CHECKPOINT_STEPS", 6)
    more = (*DENSITY, "--values", values)
    whole_folder, parts_folder = folder / f"whole-{values}", folder / f"parts-{values}"
    assert run(command(folder, whole_folder, *more, tokens=5000)) == 0

    class StopError(Exception):
        pass

    steps = student.Student.step

    def stop(self: student.Student, *args: Any) -> float:
        if self.steps == 9:
            raise StopError
        return steps(self, *args)

    monkeypatch.setattr(student.Student, "step", stop)
    assert run(command(folder, parts_folder, *more, tokens=5000)) == 70
    monkeypatch.setattr(student.Student, "step", steps)
    assert run(command(folder, parts_folder, *more, "--resume", tokens=5000)) == 0
    whole, parts = ((path / "model.safetensors").read_bytes() for path in (whole_folder, parts_folder))
    assert whole == parts
    assert AccessPlan.load(parts_folder / "plan").layers[0].neurons.values == values


@pytest.mark.parametrize("kind", ["threshold", "mixed"])
def test_takes_selectors_and_densities_of_a_plan(folder: Path, kind: str) -> None:
    first = Threshold(density=0.5) if kind == "threshold" else Oracle(density=0.5)
    plan = AccessPlan(
        model=opened_fingerprint(folder),
        layers=(LayerPlan(neurons=first), LayerPlan(neurons=Sketch(bits=2, density=0.3, lookahead=1))),
    )
    plan.save(folder / kind)
    output = folder / f"{kind}-adapted"
    assert run(command(folder, output, "--plan", str(folder / kind), tokens=2000)) == 0
    made = AccessPlan.load(output / "plan")
    assert [type(x.neurons) for x in made.layers] == [type(x.neurons) for x in plan.layers]
    assert made.layers[1].neurons.lookahead == 1
    found = json.loads((output / "adaptation.json").read_text())
    assert found["native"]["densities"] == pytest.approx([0.5, 0.3], abs=0.05)


def opened_fingerprint(folder: Path) -> str:
    opened = open_model(folder / "model")
    try:
        return opened.weights.fingerprint
    finally:
        opened.close()


def test_other_losses_and_codecs(folder: Path) -> None:
    more = ("--loss", "mixed", "--match-hidden", "0.5", "--codec", "int4", "--threads", "2")
    assert run(command(folder, folder / "other", *DENSITY, *more, tokens=3000)) == 0
    found = json.loads((folder / "other" / "adaptation.json").read_text())
    assert found["curve"][-1]["divergence"] < found["curve"][0]["divergence"]
    assert found["native"]["densities"] == pytest.approx([0.25, 0.25], abs=0.05)


def test_ends_when_the_time_is_up(folder: Path) -> None:
    text = ["--text", str(folder / "text.jsonl"), "-o", str(folder / "timed")]
    short = ["--hours", "0.0005", "--density", "0.5", "--batch-tokens", "64", "--threads", "1", "--json"]
    assert run(["adapt", str(folder / "model"), *text, *short]) == 0
    found = json.loads((folder / "timed" / "adaptation.json").read_text())
    assert 1.8 <= found["curve"][-1]["seconds"] < 30
    assert found["tokens"] > 64
