"""Estimated products that follow the weights while a model is adapted."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.cli.app import run
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, Products
from tiny_chat import D, build_tiny_chat
from training_texts import documents, write_jsonl

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")

from dejavu.adapt import distill, student  # noqa: E402
from dejavu.adapt.model import read_tensors  # noqa: E402
from dejavu.adapt.products import FollowingProducts  # noqa: E402

RANK = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("products")
    build_tiny_chat(folder / "model")
    write_jsonl(folder / "text.jsonl", documents(400, 20))
    arguments = ["--selector", "low_rank", "--uniform", "--density", "0.4", "--rank", str(RANK)]
    arguments += ["--codec", "int8", "--tokens", "5000", "--search-tokens", "300", "--verify-tokens", "300"]
    model, text, plan = (str(folder / name) for name in ("model", "text.jsonl", "plan"))
    assert run(["train", model, "--text", text, *arguments, "-o", plan]) == 0
    return folder


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("biases", [(), ("gate", "up")])
def test_they_are_those_of_the_weights_of_now(folder: Path, gated: bool, biases: tuple[str, ...]) -> None:
    opened = open_model(folder / "model")
    parts = ("gate", "up") if gated else ("up",)
    config = dataclasses.replace(opened.config, gated=gated, biases=tuple(b for b in biases if b in parts))
    masters = {name: tensor.clone() for name, tensor in read_tensors(opened.config, opened.weights).items()}
    opened.close()
    rng = np.random.default_rng(0)
    names = [f"layers.1.{part}" for part in parts]
    f = len(masters[f"{names[0]}.weight"])
    for name in names if biases else ():
        masters[f"{name}.bias"] = torch.from_numpy(rng.standard_normal(f, np.float32))

    def of_now() -> tuple[Any, Any]:
        rows = torch.cat([masters[f"{name}.weight"] for name in names]).numpy()
        shift = [masters[f"{name}.bias"] if biases else torch.zeros(f) for name in names]
        return rows, torch.cat(shift).numpy()

    directions, q = rng.standard_normal((D, RANK)), rng.standard_normal(D)
    rows, shift = of_now()
    made = Products(
        a=rng.standard_normal((RANK, D)),
        b=rows @ directions,
        bias=rows @ q + shift,
        spread=rng.random(len(rows)),
        density=0.4,
    )
    following = FollowingProducts(config, {1: made}, masters, torch.float32)
    for part in names:  # as a step of training
        weight = masters[f"{part}.weight"]
        weight += torch.from_numpy(rng.standard_normal(weight.shape).astype(np.float32)) * weight.std()
    following.refresh(1)
    rows, shift = of_now()
    wanted = Products(a=made.a, b=rows @ directions, bias=rows @ q + shift, spread=made.spread, density=0.4)
    found = following.selectors[1]
    off, moved = (np.linalg.norm(found.b - b) / np.linalg.norm(wanted.b) for b in (wanted.b, made.b))
    assert off < 0.2  # b is rounded to four bits, twice
    assert moved > 3 * off
    np.testing.assert_allclose(found.bias, wanted.bias, atol=1e-3)
    np.testing.assert_array_equal(found.a, made.a)


def command(folder: Path, output: Path, *more: str, tokens: int) -> list[str]:
    text = ["--text", str(folder / "text.jsonl"), "-o", str(output), "--plan", str(folder / "plan")]
    fast = ["--tokens", str(tokens), "--learning-rate", "1e-3", "--batch-tokens", "256", "--threads", "2"]
    return ["adapt", str(folder / "model"), *text, *fast, "--json", *more]


def test_a_plan_comes_out_with_those_of_the_adapted_weights(folder: Path) -> None:
    assert run(command(folder, folder / "out", tokens=8_000)) == 0
    before, after = (AccessPlan.load(path) for path in (folder / "plan", folder / "out" / "plan"))
    for old, new in zip(before.layers, after.layers, strict=True):
        assert isinstance(old.neurons, Products)
        assert isinstance(new.neurons, Products)
        np.testing.assert_array_equal(new.neurons.a, old.neurons.a)
        assert np.abs(new.neurons.b - old.neurons.b).max() > 0.01
    found = json.loads((folder / "out" / "adaptation.json").read_text())
    assert found["native"]["densities"] == pytest.approx([0.4, 0.4], abs=0.06)
    assert found["native"]["ppl_ratio"] == pytest.approx(found["ppl_ratio"], rel=0.1)
    assert found["curve"][-1]["divergence"] < found["curve"][0]["divergence"]


def test_resumed_run_is_exactly_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "CHECKPOINT_STEPS", 6)
    assert run(command(folder, folder / "whole", tokens=4000)) == 0

    class StopError(Exception):
        pass

    steps = student.Student.step

    def stop(self: student.Student, *args: Any) -> float:
        if self.steps == 9:
            raise StopError
        return steps(self, *args)

    monkeypatch.setattr(student.Student, "step", stop)
    assert run(command(folder, folder / "parts", tokens=4000)) == 70
    monkeypatch.setattr(student.Student, "step", steps)
    assert run(command(folder, folder / "parts", "--resume", tokens=4000)) == 0
    for name in ("model.safetensors", "plan/predictors.safetensors"):
        whole, parts = ((folder / part / name).read_bytes() for part in ("whole", "parts"))
        assert whole == parts


def test_there_may_be_none() -> None:
    config: Any = None
    assert FollowingProducts(config, {}, {}, torch.float32).selectors == {}
