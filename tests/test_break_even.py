"""Dense fallback: what is decided from times, that decisions are remembered, and that generation follows them."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu import LLM, SamplingParams
from dejavu.cli.app import run
from dejavu.engine import NativeExecutor, break_even
from dejavu.engine.break_even import BreakEven, Times, decide, time_in_turn
from dejavu.engine.native import break_even_path
from dejavu.environment import describe_machine
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, Dense, LayerPlan, Oracle, Sketch, Static, Threshold
from tiny_chat import build_tiny_chat

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_chat(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))


def uniform(tiny: Path, selector: Any) -> AccessPlan:
    opened = open_model(tiny)
    plan = AccessPlan.uniform(
        opened.weights.fingerprint, opened.config.n_layers, neurons=selector, name="mine"
    )
    opened.close()
    return plan


def times(mlps: list[float], others: float = 1.0) -> Times:
    return Times(np.array(mlps), others)


def test_layers_that_are_slower_run_dense() -> None:
    dense = times([4, 4, 4])
    assert decide(times([2, 5, 4]), dense, dense) == BreakEven((1, 2), 13 / 11)
    assert decide(times([2, 2, 2]), dense, dense) == BreakEven((), 13 / 7)
    assert decide(times([5, 5, 5]), dense, dense).speedup == 1
    assert decide(times([5, 5, 5], others=0.5), dense, dense) == BreakEven((0, 1, 2), 13 / 12.5)
    # Faster than dense in its own form, which is slower than without a plan: it does not pay.
    assert decide(times([3, 3, 3]), dense, times([2, 2, 2])).speedup < 1


def test_what_is_left_of_a_plan(tiny: Path) -> None:
    plan = uniform(tiny, Oracle(density=0.5))
    left = BreakEven((1,), 1.5).apply(plan)
    assert left is not None
    assert [type(layer.neurons) for layer in left.layers] == [Oracle, Dense]
    assert BreakEven((), 1.5).apply(plan).layers == plan.layers  # type: ignore[union-attr]
    assert BreakEven((), 1.0).apply(plan) is None


def test_times_are_taken_of_both(tiny: Path) -> None:
    executor = NativeExecutor.load(tiny, codec="int8", threads=1, cache=False)
    executor.set_plan(uniform(tiny, Threshold(density=0.5)))
    settings = [(executor, True), (executor, False)]
    tokens = np.array([3, 4, 5], np.int32)
    for found in time_in_turn(settings, tokens, attention=False):
        assert found.mlps.shape == (executor.config.n_layers,)
        assert (found.mlps > 0).all()
        assert found.others > 0
    executor.close()


@pytest.mark.parametrize("heads", [False, True])
def test_attention_counts_where_heads_are_chosen(
    heads: bool, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = NativeExecutor.load(tiny, codec="int8", threads=1, cache=False)
    chosen = Static(indices=np.array([0], np.int32)) if heads else Threshold(density=0.5)
    plan = uniform(tiny, Dense() if heads else chosen)
    if heads:
        plan = dataclasses.replace(plan, layers=(LayerPlan(heads=chosen),) * len(plan.layers))
    parts = {True: (np.ones(2), 1.0, 3.0), False: (np.full(2, 1.5), 1.0, 9.0)}
    monkeypatch.setattr(NativeExecutor, "part_seconds", lambda self: parts[sparse[-1]])
    sparse, step = [True], NativeExecutor.step

    def watched(self: Any, *arguments: Any, **options: Any) -> None:
        sparse.append(options["sparse"])
        step(self, *arguments, **options)

    monkeypatch.setattr(NativeExecutor, "step", watched)
    found = break_even.break_even(executor, plan, lambda: executor, np.array([3, 4], np.int32), None)
    assert found.speedup == pytest.approx(13 / 6 if heads else 4 / 3)
    executor.close()


@pytest.mark.parametrize("context", [2, 7, 27])
def test_a_short_context_begins_again(context: int, tmp_path: Path) -> None:
    short = build_tiny_chat(tmp_path / "short", context=context)
    plan = uniform(short, Threshold(density=0.3))
    with LLM.from_pretrained(str(short), codec="int8", threads=1, plan=plan) as llm:
        assert llm.break_even is not None


@pytest.mark.parametrize("selector", [Threshold(density=0.3), Sketch(bits=4, density=0.3)])
def test_generation_follows_what_was_measured(
    selector: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, measured = uniform(tiny, selector), []
    params = SamplingParams(temperature=0, max_tokens=7, ignore_eos=True)

    def fake(settings: Any, tokens: Any, *, attention: bool) -> list[Times]:
        assert not attention
        measured.extend(executor.packed.leading for executor, sparse in settings if not sparse)
        return [times(speeds), times([4, 4]), times([4, 4])][: len(settings)]

    monkeypatch.setattr(break_even, "time_in_turn", fake)

    def text(**options: Any) -> tuple[str, Any, Any]:
        with LLM.from_pretrained(str(tiny), codec="int8", threads=1, **options) as llm:
            kinds = llm.plan and [layer.neurons.kind for layer in llm.plan.layers]
            return llm.generate("the cat", params).text, kinds, llm.executor.packed.leading  # type: ignore[attr-defined]

    dense = text(plan="off")
    assert not measured
    leading = 4 if isinstance(selector, Sketch) else 0
    speeds = [2.0, 9.0]
    one = text(plan=plan)
    assert one[1:] == ([selector.kind, "dense"], leading)
    assert measured == ([leading, 0] if leading else [0])
    measured.clear()
    speeds = [9.0, 9.0]
    assert text(plan=plan) == one  # as remembered
    assert not measured
    whole = text(plan=plan, fallback=False)
    assert whole[1] == [selector.kind] * 2
    break_even_path(tiny).write_text("{damaged")
    assert text(plan=plan) == dense
    assert measured
    known = json.loads(break_even_path(tiny).read_text())
    assert [entry["speedup"] for entry in known.values()] == [1.0]


def test_another_machine_or_version_measures_anew(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, measured = uniform(tiny, Threshold(density=0.3)), []

    def fake(*_: Any, **__: Any) -> list[Times]:
        measured.append(1)
        return [times([2, 9]), times([4, 4])]

    monkeypatch.setattr(break_even, "time_in_turn", fake)
    other = dataclasses.replace(describe_machine(), cpu="another CPU")
    for count, (name, value) in enumerate(
        [
            ("describe_machine", describe_machine),
            ("describe_machine", lambda: other),
            ("package_version", lambda: "0.0.1"),
            ("VERSION", -1),
        ],
        start=1,
    ):
        monkeypatch.setattr(break_even, name, value, raising=False)
        for _ in range(2):
            LLM.from_pretrained(str(tiny), codec="int8", threads=1, plan=plan).close()
        assert len(measured) == count


def test_perplexity_by_a_plan_says_what_ran(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uniform(tiny, Threshold(density=0.3)).save(tmp_path / "plan")
    (tmp_path / "text.txt").write_text("the cat sat on the mat")
    command = ["perplexity", str(tiny), "--text", str(tmp_path / "text.txt"), "--codec", "int8"]
    assert run([*command, "--plan", str(tmp_path / "plan"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == "masked"
    assert told["plan_stats"]["neurons"] == pytest.approx([0.3, 0.3], abs=0.05)
    assert told["plan_density"] == pytest.approx(0.3, abs=0.05)
    assert run([*command, "--plan", str(tmp_path / "plan")]) == 0
    said = capsys.readouterr().err
    assert f"codec int8; plan mine, {told['plan_density']:.1%} of the neurons" in said


def test_the_command_says_what_runs_dense(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uniform(tiny, Threshold(density=0.3)).save(tmp_path / "plan")
    command = ["generate", "the cat", "-m", str(tiny), "--codec", "int8", "-n", "5", "--plan"]
    command.append(str(tmp_path / "plan"))
    cases = (([9, 9], [0, 1], "the plan does not pay"), ([2, 9], [1], "1 of 2 layers run dense"))
    for speeds, dense, message in cases:
        monkeypatch.setattr(break_even, "time_in_turn", lambda *_, **__: [times(speeds), times([4, 4])])  # noqa: B023
        assert run(command) == 0
        assert message in capsys.readouterr().err
        assert run([*command, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["fallback"]["dense_layers"] == dense
        assert (told["plan"] is not None) == (len(dense) < 2)
        break_even_path(tiny).unlink()
        assert run([*command, "--no-fallback"]) == 0
        assert message not in capsys.readouterr().err
        assert not break_even_path(tiny).exists()
