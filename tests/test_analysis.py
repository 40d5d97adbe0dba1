"""`analyze` from end to end: figures on a model whose insides are known, verdict, report, command."""

from __future__ import annotations

import copy
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.analysis import analyze, describe_run, render_report, split_pieces, workload, write_analysis
from dejavu.analysis.curves import DENSITIES, Run, build_plan, plan_runs, ratio_error
from dejavu.analysis.usage import Usage
from dejavu.analysis.verdict import loss, percent, reach, verdict
from dejavu.cli.app import run
from dejavu.engine import NativeExecutor
from dejavu.engine.packed import pack_in_memory
from dejavu.errors import CacheError, InputError
from dejavu.evaluation.perplexity import Document, DocumentScore, Perplexity
from dejavu.reference import ReferenceExecutor
from test_report import check_html
from tiny_chat import build_tiny_chat
from tiny_relu import CONFIG, half_dead

if TYPE_CHECKING:
    from pathlib import Path

REFERENCE = ("--executor", "reference", "--codec", "f32", "--kv", "f32")


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The half-dead model on 320 of its own tokens."""
    text = tmp_path_factory.mktemp("text") / "numbers.txt"
    weights = half_dead()
    executor = ReferenceExecutor(CONFIG, weights)
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, 320)
    pieces = split_pieces([Document(tuple(tokens.tolist()), (0,))], CONFIG)
    facts = describe_run(model="half", text=text, codec="f32", kv_dtype="f32", executor="reference")
    steps: list[int] = []
    found = analyze(executor, weights, pieces, facts=facts, seed=3, progress=steps.append)
    assert sum(steps) == workload(pieces, CONFIG)
    assert executor.prefill(
        np.array([1], np.int32), executor.new_cache(), sparse=True
    ).size  # no plan is left
    return found


def points(document: dict[str, Any], part: str, selector: str) -> dict[float, float]:
    found = document["quality"]["points"]
    return {p["density"]: p["ppl_ratio"] for p in found if (p["part"], p["selector"]) == (part, selector)}


def test_half_of_the_neurons_are_enough_where_half_are_dead(document: dict[str, Any]) -> None:
    assert document["zeros"]["mean"] >= 0.5
    assert all(share >= 0.5 for share in document["zeros"]["never_active"])
    for selector in ("oracle", "threshold", "static"):
        curve = points(document, "neurons", selector)
        assert curve[0.7] == pytest.approx(1, abs=1e-6)
        assert curve[0.5] == pytest.approx(1, abs=1e-6)
        assert abs(curve[0.1] - 1) > 1e-3
    assert abs(points(document, "neurons", "random")[0.5] - 1) > 1e-3
    assert set(points(document, "heads", "oracle")) == {0.7, 0.5, 0.2}  # 3, 2 and 1 of 4 heads
    assert not points(document, "heads", "threshold")


def test_achieved_densities_are_reported(document: dict[str, Any]) -> None:
    for point in document["quality"]["points"]:
        wanted = max(1, math.ceil(point["density"] * 64 - 1e-9)) / 64
        assert point["neurons"] == pytest.approx(1 if point["part"] == "heads" else wanted)
        wanted = max(1, math.ceil(point["density"] * 4 - 1e-9)) / 4
        assert point["heads"] == pytest.approx(1 if point["part"] == "neurons" else wanted)


def test_the_document_keeps_its_layout(document: dict[str, Any]) -> None:
    """What other programs read: a change here is a new schema version."""
    assert document["schema"] == 1
    plain = {key: value for key, value in document.items() if key != "machine"}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert {key: sorted(value) for key, value in document.items() if isinstance(value, dict)} == {
        "attention": [
            "entropy", "first_key", "gathering", "heads", "heaviest_key", "heavy_hitters", "heavy_in_top_half",
            "in_top_half", "sinks", "tokens", "uniform", "uniform_in_top_half",
        ],
        "blocks": ["attention_added", "heads", "mlp_added", "neurons", "tokens"],
        "machine": sorted(document["machine"]),
        "overlap": ["heads", "neurons"],
        "quality": ["dense_perplexity", "points"],
        "shape": [
            "activation", "d_model", "family", "gated", "heads", "kv_heads", "layers", "neurons", "vocabulary",
        ],
        "similarity": ["attention", "mlp"],
        "tokens": ["calibration", "evaluation", "piece", "pieces"],
        "versions": sorted(document["versions"]),
        "zeros": ["mean", "never_active", "share"],
    }  # fmt: skip
    assert sorted(key for key, value in document.items() if not isinstance(value, dict)) == [
        "codec", "command", "date", "executor", "fingerprint", "kv_dtype", "model", "schema", "seed", "text", "verdict",
    ]  # fmt: skip
    assert sorted(document["quality"]["points"][0]) == [
        "density", "error", "heads", "neurons", "part", "ppl_ratio", "selector",
    ]  # fmt: skip
    assert sorted(document["overlap"]["neurons"][0]) == [
        "chance_jaccard", "density", "neighbours_jaccard", "neighbours_jaccard_mean", "static_coverage",
        "static_coverage_mean", "static_jaccard", "static_jaccard_mean", "unions",
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_figures(document: dict[str, Any]) -> None:
    weights = half_dead()
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, 320)
    pieces = split_pieces([Document(tuple(tokens.tolist()), (0,))], CONFIG)
    again = analyze(ReferenceExecutor(CONFIG, weights), weights, pieces, facts={}, seed=3)
    assert all(again[key] == document[key] for key in again)


def test_the_native_engine_finds_the_same(document: dict[str, Any]) -> None:
    weights = half_dead()
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, 320)
    pieces = split_pieces([Document(tuple(tokens.tolist()), (0,))], CONFIG)
    native = NativeExecutor(pack_in_memory(CONFIG, weights, "f32", 1), kv_dtype="f32", threads=1)
    found = analyze(native, weights, pieces, facts={}, seed=3)
    for point, wanted in zip(found["quality"]["points"], document["quality"]["points"], strict=True):
        assert [point[key] for key in ("part", "selector", "density")] == [
            wanted[key] for key in ("part", "selector", "density")
        ]
        # near-ties may be picked differently; one other neuron changes little
        assert point["ppl_ratio"] == pytest.approx(wanted["ppl_ratio"], rel=5e-3)
        assert (point["neurons"], point["heads"]) == pytest.approx((wanted["neurons"], wanted["heads"]))
    assert found["zeros"] == document["zeros"]
    for part in ("neurons", "heads"):
        for curve, wanted_curve in zip(
            found["blocks"][part]["relative_error"]["oracle"],
            document["blocks"][part]["relative_error"]["oracle"],
            strict=True,
        ):
            assert curve["mean"] == pytest.approx(wanted_curve["mean"], rel=1e-3, abs=1e-6)


def test_the_report_is_one_page(document: dict[str, Any]) -> None:
    html = render_report({**document, "model": "<b>half</b>"})
    checker = check_html(html)
    assert checker.seen.count("svg") >= 15
    assert "&lt;b&gt;half" in html
    for sentence in document["verdict"]:
        assert sentence.split(":")[0] in html
    assert "Natural zeros" in html


def changed(
    document: dict[str, Any], ratios: dict[tuple[str, str, float], float], **fields: Any
) -> dict[str, Any]:
    """A copy of `document` with these perplexity ratios (others: 1 for the oracle, 5 elsewhere)."""
    copied = copy.deepcopy({**document, **fields})
    copied["quality"]["dense_perplexity"] = 8.0
    for p in copied["quality"]["points"]:
        default = 1.0 if p["selector"] == "oracle" else 5.0
        p["ppl_ratio"] = ratios.get((p["part"], p["selector"], p["density"]), default)
    return copied


def oracle(**ratios: float) -> dict[tuple[str, str, float], float]:
    return {("neurons", "oracle", float(f"0.{name[1:]}")): ratio for name, ratio in ratios.items()}


def test_verdicts_follow_from_the_figures(document: dict[str, Any]) -> None:
    bad = oracle(d4=1.05, d3=1.1, d2=1.5, d1=4.2, d05=9)
    found = verdict(changed(document, bad | oracle(d5=1.018)))
    assert found[0] == (
        "This model: 50% of the neurons for +1.8% perplexity, if each token has the right ones; do not expect to skip "
        "90%: that costs 4.2 times the perplexity even with hindsight."
    )
    assert found[1].startswith("Natural zeros: 5")
    assert (
        "fixed set of 50% of the neurons costs 5 times the perplexity, one chosen per token +1.8%" in found[2]
    )
    found = verdict(changed(document, {}))
    assert found[0] == "This model: 5% of the neurons for +0.0% perplexity, if each token has the right ones."
    found = verdict(changed(document, bad | oracle(d7=1.03, d5=1.2)))
    assert found[0].startswith("This model: 70% of the neurons for +3.0% perplexity")
    found = verdict(changed(document, bad | oracle(d7=1.13, d5=1.018)))
    assert found[0].startswith("This model shows no usable sparsity of neurons: even the best 70% of them")
    same = {("neurons", "static", 0.05): 1.01}
    assert any("not contextual" in sentence for sentence in verdict(changed(document, same)))
    gated = changed(document, {}, shape={**document["shape"], "gated": True})
    assert any("by the gate alone, 5% of the neurons cost 5 times" in sentence for sentence in verdict(gated))
    chance = changed(document, {})
    chance["quality"]["dense_perplexity"] = 41.0
    assert verdict(chance) == [
        "Nothing can be said: the model predicts this text no better than chance (perplexity 41 over a vocabulary of 40)."
    ]


def test_reach_stops_at_the_first_loss(document: dict[str, Any]) -> None:
    bumpy = changed(document, oracle(d5=1.5))
    assert reach(bumpy, "neurons", "oracle", 1.02) == 0.7
    assert reach(bumpy, "heads", "static", 1.02) == 1


def test_numbers_read_well() -> None:
    assert [loss(r) for r in (1.0178, 1.43, 0.99, 3.21, 1234.5)] == [
        "+1.8%", "+43%", "-1.0%", "3.21 times the", "1.23e+03 times the",
    ]  # fmt: skip
    assert [percent(s) for s in (0.05, 0.125, 0.5, 1, 0.0834)] == ["5%", "12%", "50%", "100%", "8.3%"]


def test_runs_are_not_made_twice() -> None:
    runs = plan_runs(9)
    assert len(set(runs)) == len(runs) == 4 * 7 + 3 * 6 + 3 * 7
    assert [r.density for r in runs if (r.part, r.selector) == ("heads", "oracle")] == [
        0.7,
        0.5,
        0.4,
        0.3,
        0.2,
        0.1,
    ]
    assert all(r.part == "neurons" for r in runs if r.selector == "threshold")
    assert {r.density for r in runs} == set(DENSITIES)


def test_static_plans_take_the_most_used() -> None:
    usage = Usage(CONFIG)
    usage.add(ReferenceExecutor(CONFIG, half_dead()).trace(np.arange(40, dtype=np.int32)))
    plan = build_plan("f" * 64, Run("both", "static", 0.25), usage, seed=0)
    for layer, (neurons, heads) in enumerate(zip(usage.neurons, usage.heads, strict=True)):
        assert set(plan.layers[layer].neurons.indices) == set(np.argsort(neurons)[-16:])  # type: ignore[union-attr]
        assert plan.layers[layer].heads.indices.tolist() == [np.argmax(heads)]  # type: ignore[union-attr]


def test_the_error_of_a_ratio() -> None:
    """As if all pieces were drawn again: against the spread of many draws."""
    rng = np.random.default_rng(0)

    def draw() -> tuple[Perplexity, Perplexity]:
        base = rng.normal(30, 5, 24)
        more = base + rng.normal(0.4, 0.3, 24)
        scores = ([DocumentScore(float(x), 10) for x in side] for side in (more, base))
        found, dense = (Perplexity(tuple(side), "prefill", 10, 10) for side in scores)
        return found, dense

    draws = [draw() for _ in range(400)]
    spread = np.std([found.ratio(dense) for found, dense in draws])
    errors = [ratio_error(found, dense) for found, dense in draws]
    assert np.mean(errors) == pytest.approx(spread, rel=0.1)  # type: ignore[arg-type]
    found, dense = draws[0]
    few = [Perplexity(side.documents[:3], "prefill", 10, 10) for side in (found, dense)]
    assert ratio_error(*few) is None


def test_nothing_is_written_over_a_file(tmp_path: Path, document: dict[str, Any]) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(CacheError, match="cannot write") as caught:
        write_analysis(document, file / "out")
    assert "-o" in str(caught.value.fix)
    assert file.read_text() == "mine"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The verb with a tiny model and a text of 300 tokens."""
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dejavu.analysis.curves.DENSITIES", (0.5, 0.1))
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 7)
    model = build_tiny_chat(tmp_path / "model")
    return ["analyze", str(model), "--text", str(text), *REFERENCE]


def test_the_command_writes_a_report(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    assert run([*command, "-o", str(out)]) == 0
    printed = capsys.readouterr()
    saved = json.loads((out / "analysis.json").read_text())
    assert saved["verdict"][0].split()[0] in printed.out
    assert "oracle" in printed.out
    assert "report.html" in printed.err
    assert (saved["text"], saved["codec"], saved["executor"]) == ("text.txt", "f32", "reference")
    assert sorted(path.name for path in out.iterdir()) == ["analysis.json", "report.html"]
    check_html((out / "report.html").read_text())


def test_the_command_prints_json(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--json", "--tokens", "280"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["tokens"]["calibration"] + printed["tokens"]["evaluation"] <= 280
    assert printed["schema"] == 1


def test_short_texts_and_bad_folders_are_refused_before_the_work(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--tokens", "100", "--json"]) == InputError.exit_code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "InputError"
    assert "too short: of its 101 tokens 48 are left" in error["message"]
    assert "at least 128 are needed" in error["message"]
    assert run([*command, "-o", str(tmp_path / "text.txt")]) == InputError.exit_code
    assert "is not a folder" in capsys.readouterr().err


def test_interrupted_it_leaves_nothing(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dejavu.analysis.measure.measure_run", stop)
    assert run([*command, "-o", str(tmp_path / "out")]) == 130
    assert not (tmp_path / "out").exists()
