"""dejavu plan show and dejavu plan check."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.cli.app import run
from dejavu.errors import PlanError
from dejavu.models.loading import open_model
from dejavu.plan import (
    AccessPlan,
    Compensator,
    KvPolicy,
    LayerPlan,
    LowRank,
    Sketch,
    Static,
    Threshold,
    VocabularySketch,
)
from tiny_chat import build_tiny_chat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_chat(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plan(tiny: Path) -> AccessPlan:
    """Every column of the table filled somewhere."""
    model = open_model(tiny)
    c, d = model.config, model.config.d_model
    zeros = np.zeros
    neurons = LowRank(
        a=zeros((4, d)), b=zeros((c.d_ff, 4)), bias=zeros(c.d_ff), density=0.25, hidden="relu", lookahead=1
    )
    heads = LowRank(a=zeros((2, d)), b=zeros((c.n_heads, 2)), bias=zeros(c.n_heads), threshold=0.5)
    layers = [
        LayerPlan(neurons, heads, Compensator(a=zeros((3, d)), b=zeros((d, 3)), bias=zeros(d))),
        LayerPlan(Sketch(bits=3, density=0.5, lookahead=2), Static(indices=np.array([1]))),
    ]
    layers += [LayerPlan(Threshold(threshold=0.125))] * (c.n_layers - 2)
    return AccessPlan(
        model=model.weights.fingerprint,
        layers=tuple(layers),
        name="example",
        kv=KvPolicy("recompute", 32),
        vocabulary=VocabularySketch(bits=3, exact=200),
        evidence={"ppl_ratio": 1.02, "tokens": {"train": 1000}, "curve": list(range(99))},
    )


@pytest.fixture
def folder(plan: AccessPlan, tmp_path: Path) -> Path:
    plan.save(tmp_path / "plan")
    return tmp_path / "plan"


@pytest.fixture
def dejavu(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([*args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_show(folder: Path, plan: AccessPlan, dejavu: Any) -> None:
    code, out, _ = dejavu("plan", "show", str(folder))
    assert code == 0
    for words in (
        plan.model,
        "recompute, at most 32 positions late",
        "sketch, 3 bits, the best 200 exact",
        "codecs           int8",
        "1.0200 times that of the dense model",
        "1,000 train",
        "evidence: curve",
        "...",
    ):
        assert words in out
    table = [line.split() for line in out.partition("\n\n")[2].splitlines()]
    assert table[2][:12] == [
        "0",
        "low_rank",
        "25%",
        "rank",
        "4,",
        "relu",
        "1",
        "low_rank",
        ">",
        "0.5",
        "rank",
        "2",
    ]
    assert table[3] == ["1", "sketch", "50%", "3", "bits", "2", "static", "1", "4"]


def test_show_as_json(folder: Path, plan: AccessPlan, dejavu: Any) -> None:
    code, out, _ = dejavu("plan", "show", str(folder), "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["kv"] == {"kind": "recompute", "buffer": 32}
    assert facts["evidence"] == plan.evidence
    assert facts["layers"][0]["neurons"] == {
        "kind": "low_rank", "rank": 4, "density": 0.25, "hidden": "relu", "lookahead": 1
    }  # fmt: skip
    assert facts["layers"][1]["heads"] == {"kind": "static", "indices": 1}
    assert facts["layers"][1]["compensator"] == {"kind": "none"}
    stored = (folder / "predictors.safetensors").stat().st_size
    assert 0 < stored - facts["bytes"] < 4096  # the header


def test_show_in_words(folder: Path, plan: AccessPlan, dejavu: Any) -> None:
    evidence = {
        "ppl_ratio": 1.0437,
        "max_ppl_ratio": 1.04,
        "exact": False,
        "codec": "int8",
        "neurons": {"density": 0.25, "recall": 0.9},
        "heads": {"density": 1.0},
        "touched_share": 0.5,
        "tokens": {"training": 0, "verification": 9980},
        "vocabulary": {"cost": 1.0009, "verification": 9980},
        "measured_on": "f" * 64,
        "command": "dejavu adapt",
        "layers": [],
    }
    dataclasses.replace(plan, evidence=evidence).save(folder)
    _, out, _ = dejavu("plan", "show", str(folder))
    told = dict(line.split("  ", 1) for line in out.partition("\n\n")[0].splitlines())
    told = {name: value.strip() for name, value in told.items()}
    assert (
        told["perplexity"]
        == "1.0437 times that of the dense original in bf16, held in int8, on 9,980 held-out tokens"
    )
    assert told["asked for"] == "at most 1.0400 times, which is MISSED"
    assert told["neurons"] == "density 0.250, recall 0.900"
    assert told["touched"].startswith("50%")
    assert told["logits"].startswith("1.0009 times")
    assert told["tokens"] == "9,980 verification"
    assert (told["figures are of weights"], told["made by"]) == ("f" * 64, "dejavu adapt")
    assert "heads" not in told
    assert "evidence" not in out
    dataclasses.replace(plan, evidence=evidence | {"max_ppl_ratio": 1.05}).save(folder)
    assert "at most 1.0500 times, which is kept" in dejavu("plan", "show", str(folder))[1]
    odd = {name: ["what", {"ever": None}] for name in evidence}  # evidence is not checked when a plan is read
    dataclasses.replace(plan, evidence=odd).save(folder)
    code, out, _ = dejavu("plan", "show", str(folder))
    assert (code, "evidence: ppl_ratio" in out) == (0, True)


def test_show_the_plan_of_a_model(folder: Path, plan: AccessPlan, dejavu: Any) -> None:
    for named in (folder.parent, "smollm2-sparse", "smollm2-half/gentler/0.63"):
        code, out, _ = dejavu("plan", "show", str(named), "--json")
        name = json.loads(out)["name"]
        assert (code, name == "example") == (0, named == folder.parent)
    code, out, _ = dejavu("plan", "check", str(folder.parent))
    assert (code, f"plan check {folder} MODEL" in out) == (0, True)
    code, _, err = dejavu("plan", "show", str(folder / "nowhere"))
    assert (code, "nowhere" in err) == (PlanError.exit_code, True)
    code, _, err = dejavu("plan", "show", "smollm2")
    assert (code, "smollm2 has no plan of its own" in err) == (PlanError.exit_code, True)


def test_check(folder: Path, tiny: Path, plan: AccessPlan, dejavu: Any) -> None:
    code, out, _ = dejavu("plan", "check", str(folder))
    assert (code, "files of the plan are sound" in out) == (0, True)
    assert f"next: dejavu plan check {folder} MODEL" in out
    code, out, _ = dejavu("plan", "check", str(folder), str(tiny))
    assert (code, "for this model" in out) == (0, True)
    assert f"-m {tiny} --plan {folder} --codec int8" in out
    code, out, _ = dejavu("plan", "check", str(folder), str(tiny), "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)
    AccessPlan(model="f" * 64, layers=plan.layers, name="other").save(folder)
    code, out, err = dejavu("plan", "check", str(folder), str(tiny))
    assert code == PlanError.exit_code
    assert f"'other' is for model {'f' * 16}, this one is {plan.model[:16]}" in err
    assert "dejavu train" in err
    AccessPlan(model=plan.model, layers=plan.layers[:1]).save(folder)
    code, out, _ = dejavu("plan", "check", str(folder), str(tiny), "--json")
    assert code == PlanError.exit_code
    assert "1 layers" in json.loads(out)["error"]["message"]
    (folder / "predictors.safetensors").write_bytes(b"")
    code, _, err = dejavu("plan", "show", str(folder))
    assert (code, "truncated" in err) == (PlanError.exit_code, True)


def test_plan_alone_shows_help(dejavu: Any) -> None:
    code, out, err = dejavu("plan", "--help")
    assert code == 0
    assert "show" in out + err
    assert "check" in out + err
