"""Low-rank predictors that learn on while a model is adapted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.cli.app import run
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, LayerPlan, LowRank
from tiny_chat import D, build_tiny_chat
from training_texts import documents, write_jsonl

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")

from dejavu.adapt import distill, student  # noqa: E402
from dejavu.adapt.predictors import Predictors  # noqa: E402

RANK, NEURONS = 8, 48


def predictor(seed: int, hidden: Any = "linear", lookahead: int = 0) -> LowRank:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((RANK, D), np.float32), rng.standard_normal((NEURONS, RANK), np.float32)
    bias = rng.standard_normal(NEURONS).astype(np.float32)
    return LowRank(a=a / 6, b=b / 3, bias=bias / 3, hidden=hidden, lookahead=lookahead, density=0.3)


@pytest.mark.parametrize("hidden", ["linear", "relu"])
def test_gradients_are_those_of_the_loss(hidden: Any) -> None:
    selector = predictor(0, hidden)
    predictors = Predictors({3: selector}, torch.float32)
    x, label = torch.randn(40, D), torch.rand(40, NEURONS) < 0.2
    found = predictors.gradient(3, x, predictors.scores(3, x), label)
    a, b, bias = (torch.tensor(getattr(selector, n)).requires_grad_() for n in ("a", "b", "bias"))
    middle = x @ a.T
    z = (middle.relu() if hidden == "relu" else middle) @ b.T + bias
    share = label.float().mean()
    weights = torch.where(label, 0.5 / share, 0.5 / (1 - share))
    torch.nn.functional.binary_cross_entropy_with_logits(z, label.float(), weights).backward()
    for name, expected in (("a", a), ("b", b), ("bias", bias)):
        torch.testing.assert_close(getattr(found, name), expected.grad, rtol=1e-4, atol=1e-7)


def test_they_learn_and_what_is_not_finite_changes_nothing() -> None:
    torch.manual_seed(0)
    predictors = Predictors({0: predictor(1), 1: predictor(2)}, torch.float32)
    truth = torch.randn(NEURONS, RANK) @ torch.randn(RANK, D)

    def recall(x: Any, label: Any) -> float:
        scores = predictors.scores(0, x)
        chosen = scores > scores.flatten().kthvalue(int(0.7 * scores.numel())).values
        return float((chosen & label).sum() / label.sum())

    other = predictors.selectors[1]
    before = None
    for _ in range(300):
        x = torch.randn(64, D)
        products = x @ truth.T
        label = products > products.flatten().kthvalue(int(0.7 * products.numel())).values
        before = recall(x, label) if before is None else before
        predictors.learn([{0: predictors.gradient(0, x, predictors.scores(0, x), label)}], 1.0)
    assert before is not None
    assert recall(x, label) > before + 0.2
    for name in ("a", "b", "bias"):  # no pass had a gradient of it
        np.testing.assert_array_equal(getattr(predictors.selectors[1], name), getattr(other, name))
    kept = predictors.selectors[0]
    broken = predictors.gradient(0, x * torch.nan, predictors.scores(0, x), label)
    predictors.learn([{0: broken}], 1.0)
    for name in ("a", "b", "bias"):
        np.testing.assert_array_equal(getattr(predictors.selectors[0], name), getattr(kept, name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predictors")
    build_tiny_chat(folder / "model")
    write_jsonl(folder / "text.jsonl", documents(400, 20))
    opened = open_model(folder / "model")
    ahead = LayerPlan(neurons=predictor(4, "relu", lookahead=1))
    plan = AccessPlan(model=opened.weights.fingerprint, layers=(LayerPlan(neurons=predictor(3)), ahead))
    opened.close()
    plan.save(folder / "plan")
    return folder


def command(folder: Path, output: Path, *more: str, tokens: int) -> list[str]:
    text = ["--text", str(folder / "text.jsonl"), "-o", str(output), "--plan", str(folder / "plan")]
    fast = ["--tokens", str(tokens), "--learning-rate", "1e-3", "--batch-tokens", "256", "--threads", "2"]
    return ["adapt", str(folder / "model"), *text, *fast, "--json", *more]


def test_a_plan_comes_out_with_what_they_learned(folder: Path) -> None:
    assert run(command(folder, folder / "out", tokens=12_000)) == 0
    before, after = (AccessPlan.load(path) for path in (folder / "plan", folder / "out" / "plan"))
    for old, new in zip(before.layers, after.layers, strict=True):
        assert isinstance(old.neurons, LowRank)
        assert isinstance(new.neurons, LowRank)
        assert (new.neurons.hidden, new.neurons.lookahead) == (old.neurons.hidden, old.neurons.lookahead)
        assert np.abs(new.neurons.b - old.neurons.b).max() > 0.01
    found = json.loads((folder / "out" / "adaptation.json").read_text())
    first, last = found["curve"][0]["recalls"], found["curve"][-1]["recalls"]
    assert all(y > x + 0.03 for x, y in zip(first, last, strict=True))
    assert found["native"]["densities"] == pytest.approx([0.3, 0.3], abs=0.05)
    assert found["native"]["ppl_ratio"] == pytest.approx(found["ppl_ratio"], rel=0.1)


def test_resumed_run_is_exactly_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "CHECKPOINT_STEPS", 6)
    assert run(command(folder, folder / "whole", tokens=5000)) == 0

    class StopError(Exception):
        pass

    steps = student.Student.step

    def stop(self: student.Student, *args: Any) -> float:
        if self.steps == 9:
            raise StopError
        return steps(self, *args)

    monkeypatch.setattr(student.Student, "step", stop)
    assert run(command(folder, folder / "parts", tokens=5000)) == 70
    monkeypatch.setattr(student.Student, "step", steps)
    assert run(command(folder, folder / "parts", "--resume", tokens=5000)) == 0
    for name in ("model.safetensors", "plan/predictors.safetensors"):
        whole, parts = ((folder / part / name).read_bytes() for part in ("whole", "parts"))
        assert whole == parts


def test_there_may_be_none() -> None:
    predictors = Predictors({}, torch.float32)
    predictors.learn([{}], 1.0)
    predictors.restore({})
    assert predictors.arrays() == {}
