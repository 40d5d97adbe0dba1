"""dejavu eval: known answers, plans side by side, interruption and resumption, shards, spot checks, bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.cli.app import run
from dejavu.evaluation import suite
from dejavu.evaluation.journal import Journal
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, Sketch, Threshold
from dejavu.reference import ReferenceExecutor
from dejavu.tokenizer import Tokenizer
from test_delta import changed
from test_eval_scores import direct
from tiny_chat import build_tiny_chat

if TYPE_CHECKING:
    from pathlib import Path

Dejavu = Callable[..., SimpleNamespace]
CONTEXT = 100


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_chat(tmp_path_factory.mktemp("tiny"), context=CONTEXT)


@pytest.fixture(scope="module")
def plan(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    model = open_model(tiny)
    folder = tmp_path_factory.mktemp("plan")
    AccessPlan.uniform(
        model.weights.fingerprint, model.config.n_layers, neurons=Threshold(density=0.3), name="third"
    ).save(folder)
    model.close()
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files: 40 questions of which two are too long, 7 clozes, 5 prompts."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("tasks")

    def words(n: int) -> str:
        return "".join(rng.choice(list("abcdefgh "), n)).strip() + "x"

    def write(name: str, rows: list[Any]) -> None:
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    questions = [
        {"context": words(9), "choices": [" " + words(4) for _ in range(3)], "gold": i % 3} for i in range(40)
    ]
    questions[4]["context"] = questions[25]["context"] = "x" * CONTEXT
    write("quiz", questions)
    write("cloze", [{"context": words(12), "target": " " + words(1)} for _ in range(7)])
    write("talk", [{"prompt": words(8), "target": words(5), "stop": ["q"] * (i % 2)} for i in range(5)])
    write("long", [questions[4]])
    (path / "text.txt").write_text(words(300), encoding="utf-8")
    return path


@pytest.fixture
def dejavu(tiny: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Dejavu:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))

    def call(*args: str, model: Path = tiny, codec: str | None = "f32") -> SimpleNamespace:
        args = args if codec is None or "--codec" in args else ("--codec", codec, *args)
        capsys.readouterr()
        code = run(["eval", str(model), "--task-folder", str(folder), "--kv", "f32", *args])
        out, err = capsys.readouterr()
        return SimpleNamespace(
            code=code, out=out, err=err, json=json.loads(out) if "--json" in args else None
        )

    return call


def items(path: Path) -> dict[Any, Any]:
    """What a journal holds, without the order."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(x.pop("run"), x.pop("of"), x.pop("item")): x for x in lines}


def figures(document: Any) -> Any:
    return [(r["tasks"], r.get("average"), r["texts"]) for r in document["runs"]]


def test_figures_equal_the_reference(dejavu: Dejavu, tiny: Path, folder: Path, plan: str) -> None:
    found = dejavu("--tasks", "quiz,cloze", "--plan", "off", "--plan", plan, "--json").json
    model, tokenizer = open_model(tiny), Tokenizer.from_folder(tiny)
    executor = ReferenceExecutor(model.config, model.weights)
    verdicts = []
    for record, sparse in zip(found["runs"], (False, True), strict=True):
        executor.set_plan(AccessPlan.load(plan))
        hits = []
        for number, line in enumerate((folder / "quiz.jsonl").read_text().splitlines()):
            item = json.loads(line)
            context = tuple(tokenizer.encode(item["context"], add_special=False))
            choices = [tuple(tokenizer.encode(c, add_special=False)) for c in item["choices"]]
            if number not in (4, 25):
                logprobs = [direct(executor, context, c, sparse=sparse)[0] for c in choices]
                hits.append(int(np.argmax(logprobs)) == item["gold"])
        verdicts.append(np.array(hits, float))
        quiz = record["tasks"]["quiz"]
        assert quiz["items"] == len(hits) == 38
        assert quiz["skipped"] == [{"line": 5, "reason": "too long"}, {"line": 26, "reason": "too long"}]
        assert quiz["metrics"]["acc"]["value"] == pytest.approx(np.mean(hits))
        assert record["path"] == ("masked" if sparse else "prefill")
        logprobs = []
        for line in (folder / "cloze.jsonl").read_text().splitlines():
            item = json.loads(line)
            context, target = (
                tuple(tokenizer.encode(item[k], add_special=False)) for k in ("context", "target")
            )
            logprobs.append(direct(executor, context, target, sparse=sparse)[0])
        perplexity = record["tasks"]["cloze"]["metrics"]["perplexity"]["value"]
        assert perplexity == pytest.approx(np.exp(-np.mean(logprobs)), rel=1e-3)
    model.close()
    dense, sparse = found["runs"]
    change = verdicts[1] - verdicts[0]
    difference = sparse["difference"]["tasks"]["quiz"]["acc"]
    assert difference["value"] == pytest.approx(change.mean())
    assert difference["stderr"] == pytest.approx(change.std(ddof=1) / np.sqrt(38))
    both = [run["average"]["value"] for run in (dense, sparse)]
    assert sparse["difference"]["average"]["value"] == pytest.approx(both[1] - both[0])
    assert "difference" not in dense
    assert (dense["name"], sparse["name"]) == ("f32", "f32, third")
    assert dense["key"] != sparse["key"]
    # of 48 neurons, the density rounds up
    assert sparse["plan_stats"]["neurons"] == pytest.approx([15 / 48] * 2)


def test_table(dejavu: Dejavu, plan: str, folder: Path) -> None:
    result = dejavu(
        *("--tasks", "quiz,long", "--tasks", "talk", "--text", str(folder / "text.txt"), "--tokens", "150"),
        *("--plan", "off", "--plan", plan, "--spot-check", "3", "--max-tokens", "4"),
    )
    assert result.code == 0, result.err
    for words in (
        "acc_norm",
        "exact_match",
        "150 ",
        "kl_p99.9",
        "difference",
        "third",
        " ± 0.",
    ):
        assert words in result.out
    assert re.search(r"quiz +acc +38 ", result.out)
    assert "quiz: 2 items skipped (line 5 too long, line 26 too long)" in result.out
    assert "long: 1 items skipped" in result.out
    assert "f32, third: 3 items again by decoding" in result.out
    assert "Give -o FILE.json" in result.err
    assert ("bleu" in result.out) != ("no BLEU: pip install" in result.err)


@pytest.mark.parametrize("kind", ["quiz", "talk", "text"])
def test_resumed_equals_uninterrupted(
    kind: str, dejavu: Dejavu, plan: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = ("--text", str(folder / "text.txt"), "--window", "40") if kind == "text" else ("--tasks", kind)
    args = (*what, "--plan", plan, "--max-tokens", "6", "--codec", "int8", "--json")
    whole = dejavu(*args, "-o", str(tmp_path / "whole.json"))
    assert whole.code == 0
    name = {"quiz": "score", "text": "measure_window"}.get(kind, "_generate")
    work, calls = getattr(suite, name), []

    def interrupted(*a: Any, **k: Any) -> Any:
        calls.append(1)
        if len(calls) == (1 if kind == "talk" else 2):
            raise KeyboardInterrupt
        return work(*a, **k)

    output = tmp_path / "part.json"
    with monkeypatch.context() as patched:
        patched.setattr(suite, name, interrupted)
        stopped = dejavu(*args[:-1], "-o", str(output))
    assert stopped.code == 130
    assert "run it again with --resume" in stopped.err
    assert not output.exists()
    again = dejavu(*args[:-1], "-o", str(output))
    assert again.code == 8
    assert "interrupted run" in again.err
    journal = tmp_path / "part.items.jsonl"
    before = len(items(journal))
    with journal.open("a") as stream:
        stream.write('{"run": "cut o')  # what a kill leaves
    resumed = dejavu(*args, "-o", str(output), "--resume")
    assert resumed.code == 0
    assert figures(resumed.json) == figures(whole.json)
    assert items(journal) == items(tmp_path / "whole.items.jsonl")
    assert (before > 0) == (kind != "talk")
    # a finished run is read from its items alone
    with monkeypatch.context() as patched:
        patched.setattr(suite, name, None)
        assert figures(dejavu(*args, "-o", str(output), "--resume").json) == figures(whole.json)
    # another plan is another run: nothing of this one's is taken for it
    dejavu(*args, "-o", str(output), "--resume", "--plan", "off")
    assert len(items(journal)) == 2 * len(items(tmp_path / "whole.items.jsonl"))


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"rope_theta": 500.0}),
        ("config.json", {"hidden_act": "relu"}),
        ("tokenizer_config.json", {"add_bos_token": True}),
        ("generation_config.json", {"eos_token_id": 7}),
    ],
)
def test_a_changed_model_is_scored_anew(
    file: str, changes: dict[str, Any], dejavu: Dejavu, tiny: Path, tmp_path: Path
) -> None:
    model, output = shutil.copytree(tiny, tmp_path / "model"), tmp_path / "results.json"
    args = ("--tasks", "quiz,talk", "--max-tokens", "3", "--limit", "3", "--codec", "int8", "--resume", "-o")

    def scored() -> int:
        assert dejavu(*args, str(output), model=model).code == 0
        return len(items(tmp_path / "results.items.jsonl"))

    assert scored() == scored() == 6
    options = json.loads((model / file).read_text()) if (model / file).exists() else {}
    (model / file).write_text(json.dumps(options | changes))
    assert scored() == 12


@pytest.mark.parametrize(
    ("name", "value"),
    [("dejavu.environment.package_version", "9.9"), ("dejavu.engine.core.chosen_isa", "another")],
)
def test_items_of_another_engine_are_not_taken(
    name: str, value: str, dejavu: Dejavu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("--tasks", "cloze", "--limit", "3", "--codec", "int8", "--resume", "-o")

    def scored() -> int:
        assert dejavu(*args, str(tmp_path / "results.json")).code == 0
        return len(items(tmp_path / "results.items.jsonl"))

    assert scored() == scored() == 3
    monkeypatch.setattr(name, lambda *_: value)
    assert scored() == 6


def test_shards_add_up(dejavu: Dejavu, folder: Path, tmp_path: Path) -> None:
    args = ("--tasks", "quiz,cloze", "--text", str(folder / "text.txt"), "--window", "30", "--json")
    whole = dejavu(*args).json
    lines = []
    for part in (1, 2, 3):
        output = tmp_path / f"{part}.json"
        found = dejavu(*args, "--shard", f"{part}/3", "-o", str(output))
        assert found.json["runs"][0]["tasks"]["cloze"]["items"] == (3 if part == 1 else 2)
        lines.append(output.with_suffix(".items.jsonl").read_text())
    (tmp_path / "all.items.jsonl").write_text("".join(lines))
    merged = dejavu(*args, "-o", str(tmp_path / "all.json"), "--resume")
    assert merged.code == 0
    assert "".join(lines) == (tmp_path / "all.items.jsonl").read_text()  # nothing was left to do
    for name in ("quiz", "cloze"):
        for metric, value in whole["runs"][0]["tasks"][name]["metrics"].items():
            assert merged.json["runs"][0]["tasks"][name]["metrics"][metric] == pytest.approx(value, rel=1e-4)
    for metric, value in whole["runs"][0]["texts"]["text.txt"]["metrics"].items():
        assert merged.json["runs"][0]["texts"]["text.txt"]["metrics"][metric] == pytest.approx(
            value, rel=1e-4
        )


def test_codecs_side_by_side(dejavu: Dejavu, folder: Path) -> None:
    text = str(folder / "text.txt")
    found = dejavu("--tasks", "cloze", "--text", text, "--codec", "f32", "--codec", "int8", "--json").json[
        "runs"
    ]
    assert [run["name"] for run in found] == ["f32", "int8"]
    assert [run["texts"]["text.txt"]["base"] for run in found] == [None, "f32"]
    assert found[1]["texts"]["text.txt"]["metrics"]["kl_mean"]["value"] > 0
    assert set(found[1]["difference"]["tasks"]) == {"cloze"}
    alone = dejavu("--tasks", "cloze", "--codec", "int8", "--json").json["runs"][0]
    assert alone["key"] == found[1]["key"]
    assert alone["tasks"] == found[1]["tasks"]


def test_the_codec_is_the_one_that_the_plans_were_made_for(
    dejavu: Dejavu, tiny: Path, plan: str, tmp_path: Path
) -> None:
    """As `dejavu generate` and `dejavu bench` take it: this model's plan reads leading bits that bf16 does not have."""
    third, folder = AccessPlan.load(plan), tmp_path / "model"
    shutil.copytree(tiny, folder)
    for place, bits in (("plan", 4), ("gentler/0.49", 3)):
        sketch = AccessPlan.uniform(third.model, len(third.layers), neurons=Sketch(bits=bits, density=0.5))
        replace(sketch, name=place, evidence={"codec": "int8"}).save(folder / place)

    def names(*args: str, model: Path = folder, codec: str | None = None) -> list[str]:
        found = dejavu("--tasks", "cloze", "--limit", "1", *args, "--json", model=model, codec=codec)
        assert found.code == 0, found.err
        return [run["name"] for run in found.json["runs"]]

    assert names() == ["int8, plan"]
    assert names("--plan", "off", "--plan", "gentler/0.49") == ["int8", "int8, gentler/0.49"]
    assert names("--plan", "off") == ["bf16"]
    assert names("--plan", plan) == ["bf16, third"]  # it does not say
    assert names("--plan", "off", "--executor", "reference") == ["f32"]
    assert names(codec="bf16") == ["bf16"]
    assert names("--codec", "bf16", "--codec", "auto", "--plan", "off", "--plan", "auto") == [
        "bf16",
        "bf16",
        "int8",
        "int8, plan",
    ]
    assert names(model=tiny) == ["bf16"]


def test_divergence_is_left_out_for_the_base_itself(dejavu: Dejavu, folder: Path, plan: str) -> None:
    text = ("--text", str(folder / "text.txt"), "--json")
    assert set(dejavu(*text).json["runs"][0]["texts"]["text.txt"]["metrics"]) == {"perplexity"}
    assert (
        dejavu(*text, "--plan", plan, "--base-codec", "off").json["runs"][0]["texts"]["text.txt"]["base"]
        is None
    )
    found = dejavu(*text, "--plan", plan).json["runs"][0]["texts"]["text.txt"]
    assert found["base"] == "f32"
    assert found["metrics"]["kl_mean"]["value"] > 0


def test_texts_are_compared_with_another_model(
    dejavu: Dejavu, tiny: Path, folder: Path, tmp_path: Path, plan: str
) -> None:
    """Their ratio is that of two runs, with a plan and without; a base with other tokens is refused."""
    other = changed(tiny, tmp_path / "other")
    text = ("--text", str(folder / "text.txt"), "--json")

    def found(*args: str, model: Path = tiny) -> Any:
        return dejavu(*text, *args, model=model).json["runs"][0]["texts"]["text.txt"]

    its_own = found(model=other)["metrics"]["perplexity"]["value"]
    for more in ((), ("--plan", plan)):
        beside = found("--base", str(other), *more)
        assert beside["base"] == f"{other}, f32"
        figures = {name: figure["value"] for name, figure in beside["metrics"].items()}
        assert figures["ppl_ratio"] == pytest.approx(figures["perplexity"] / its_own, rel=1e-4)
        assert figures["kl_mean"] > 0
        assert figures["same_top1"] < 1
    assert found("--base", str(tiny), "--base-codec", "f32")["metrics"]["kl_mean"]["value"] == pytest.approx(
        0, abs=1e-6
    )
    narrow = build_tiny_chat(tmp_path / "narrow", context=40)
    assert found("--base", str(narrow))["metrics"]["kl_mean"]["value"] == pytest.approx(0, abs=1e-6)
    renamed = tmp_path / "renamed"
    shutil.copytree(tiny, renamed)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (renamed / name).write_text((renamed / name).read_text().replace("<|end|>", "<|fin|>"))
    for args, message in (
        ((*text, "--base", str(renamed)), "has other tokens"),
        ((*text, "--base", str(other), "--base-codec", "off"), "--base is for"),
        (("--tasks", "quiz", "--base", str(other), "--json"), "--base is for"),
        ((*text, "--base", str(tmp_path / "nowhere")), "nowhere"),
        ((*text, "--base", str(narrow), "--window", "50"), "choose 2 to 40, the base's context"),
    ):
        refused = dejavu(*args, model=tiny)
        assert (refused.code != 0, message in refused.out) == (True, True), args


def test_spot_check_finds_what_was_scored_wrongly(
    dejavu: Dejavu, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("--tasks", "quiz,cloze", "--plan", plan, "--spot-check", "9", "--json")
    check = dejavu(*args).json["runs"][0]["spot_check"]
    assert check["items"] == 9
    assert check["max_difference"] < 1e-3
    assert check["changed"] == 0
    work = suite.score
    monkeypatch.setattr(suite, "score", lambda *a, sparse: work(*a, sparse=False))
    wrong = dejavu(*args).json["runs"][0]["spot_check"]
    assert wrong["max_difference"] > 0.1
    assert wrong["task"] in ("quiz", "cloze")
    many = dejavu(*args[:-3], "--spot-check", "1000", "--limit", "3", "--json").json["runs"][0]["spot_check"]
    assert many["items"] == 6


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "nothing to evaluate"),
        (("--tasks", "nonsense"), "there are: cloze, long, quiz, talk"),
        (("--tasks", "quiz", "--shard", "2"), "--shard 2"),
        (("--tasks", "quiz", "--shard", "3/2"), "shard 3/2"),
        (("--tasks", "quiz", "--resume"), "--resume without --output"),
        (("--tasks", "quiz", "--base-codec", "int3"), "--base-codec int3"),
        (("--tasks", "quiz", "--base-codec", "auto"), "--base-codec auto"),
        (("--tasks", "quiz", "--plan", "nowhere"), "nowhere"),
        (("--text", "TEXT", "--text", "TEXT"), "same name"),
        (("--tasks", "talk", "--spot-check", "2"), "spot check"),
        (("--text", "TEXT", "--window", "1"), "window of 1"),
        (("--text", "TEXT", "--window", "101"), "choose 2 to 100"),
        (("--text", "TEXT", "--tokens", "-1"), "-1 tokens"),
    ],
)
def test_bad_input(dejavu: Dejavu, folder: Path, args: tuple[str, ...], message: str) -> None:
    args = tuple(str(folder / "text.txt") if a == "TEXT" else a for a in args)
    result = dejavu(*args)
    assert result.code in (8, 10)
    assert message in result.err
    assert "fix: " in result.err


def finished(dejavu: Dejavu, output: Path) -> list[bytes]:
    """What a run leaves that is not interrupted."""
    assert dejavu("--tasks", "cloze", "-o", str(output)).code == 0
    return contents(output)


def contents(output: Path) -> list[bytes]:
    return [path.read_bytes() for path in (output, output.with_suffix(".items.jsonl"))]


@pytest.mark.parametrize(
    "args",
    [
        ("--tasks", "nonsense"),
        ("--tasks", "quiz", "--plan", "nowhere"),
        ("--tasks", "quiz", "--base-codec", "int3"),
        ("--tasks", "quiz", "--threads", "100000"),
        ("--text", "TEXT", "--window", "101"),
        ("--text", "MISSING"),
    ],
)
def test_a_run_that_cannot_begin_leaves_what_there_is(
    dejavu: Dejavu, folder: Path, tmp_path: Path, args: tuple[str, ...]
) -> None:
    output = tmp_path / "r.json"
    before = finished(dejavu, output)
    names = {"TEXT": str(folder / "text.txt"), "MISSING": str(tmp_path / "missing.txt")}
    again = dejavu(*(names.get(a, a) for a in args), "-o", str(output))
    assert again.code not in (0, 1)
    assert contents(output) == before
    assert dejavu(*(names.get(a, a) for a in args), "-o", str(tmp_path / "new.json")).code == again.code
    assert not list(tmp_path.glob("new.*"))


def test_an_interrupted_run_over_a_finished_one_is_known(
    dejavu: Dejavu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "r.json"
    results, journal = finished(dejavu, output)
    args = ("--tasks", "quiz,cloze", "-o", str(output))

    def interrupted(of: str) -> SimpleNamespace:
        work = suite.score

        def score(executor: Any, prompts: Any, **options: Any) -> Any:
            kind = "quiz" if len(prompts[0].targets) > 1 else "cloze"
            if kind == of:
                raise KeyboardInterrupt
            return work(executor, prompts, **options)

        with monkeypatch.context() as patched:
            patched.setattr(suite, "score", score)
            return dejavu(*args)

    assert interrupted("quiz").code == 130
    assert contents(output) == [results, journal]  # nothing was finished that could replace it
    assert interrupted("cloze").code == 130
    assert output.read_bytes() == results
    again = dejavu(*args)
    assert again.code == 8
    assert "interrupted run" in again.err
    assert dejavu(*args, "--resume").code == 0
    assert set(json.loads(output.read_text())["runs"][0]["tasks"]) == {"cloze", "quiz"}
    assert dejavu(*args).code == 0  # a finished one may be replaced


def test_places_that_are_not_for_results(dejavu: Dejavu, folder: Path, tmp_path: Path, plan: str) -> None:
    task = (folder / "cloze.jsonl").read_text()
    items_like, linked, other = (tmp_path / n for n in ("in.items.jsonl", "linked.json", "other.json"))
    items_like.write_text(task)
    linked.symlink_to(items_like)
    other.write_text("[1]")
    (tmp_path / "folder.json").mkdir()
    for name, message in {
        "keep.txt": ".json file",
        "in.items.jsonl": ".json file",
        "in.json": f"this run reads {items_like}",
        "linked.json": f"this run reads {linked}",
        "other.json": "no result of dejavu eval",
        f"{plan}/plan.json": "no result of dejavu eval",
        "folder.json": "folder.json is a folder",
    }.items():
        before = sorted(tmp_path.iterdir())
        result = dejavu("--tasks", str(items_like), "-o", str(tmp_path / name))
        assert result.code == 8
        assert message in result.err
        assert "fix: " in result.err
        assert sorted(tmp_path.iterdir()) == before
    assert (items_like.read_text(), other.read_text()) == (task, "[1]")


def test_says_that_nothing_was_scored(dejavu: Dejavu, folder: Path) -> None:
    result = dejavu("--tasks", "long")
    assert re.search(r"long +\(nothing scored\) +0", result.out)
    assert "long: 1 items skipped" in result.out
    assert "nothing was scored" in result.err
    empty = dejavu("--text", str(folder / "text.txt"), "--tasks", "talk", "--shard", "90/90")
    assert (empty.code, empty.out.count("(nothing scored)")) == (0, 2)
    assert "nothing was scored" in empty.err
    some = dejavu("--tasks", "long,cloze")
    assert "(nothing scored)" in some.out
    assert "nothing was scored" not in some.err


def test_results_are_on_the_disk_when_they_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "x.items.jsonl", []
    with Journal(path) as journal:
        journal.add("run", "task", [(1, {"a": 1})])
        monkeypatch.setattr("os.fsync", lambda fd: synced.append(os.fstat(fd).st_size))
        journal.add("run", "task", [(2, {"a": 2}), (3, {"a": 3})])
        assert synced == [path.stat().st_size]


def test_damaged_or_unwritable_journal(dejavu: Dejavu, tmp_path: Path) -> None:
    (tmp_path / "a.items.jsonl").write_text('{"run": "x"}\n')
    result = dejavu("--tasks", "quiz", "-o", str(tmp_path / "a.json"), "--resume")
    assert result.code == 8
    assert "a.items.jsonl:1: not a finished item" in result.err
    (tmp_path / "file").write_text("")
    result = dejavu("--tasks", "quiz", "-o", str(tmp_path / "file" / "a.json"))
    assert result.code == 7
    assert "cannot write" in result.err


def test_generation_metrics_of_what_generate_writes(
    dejavu: Dejavu, tiny: Path, folder: Path, tmp_path: Path
) -> None:
    from dejavu import LLM, SamplingParams

    output = tmp_path / "talk.json"
    found = dejavu("--tasks", "talk", "--max-tokens", "6", "-o", str(output), "--json").json
    with LLM.from_pretrained(str(tiny), codec="f32", kv_dtype="f32", plan="off") as llm:
        rows = [json.loads(line) for line in (folder / "talk.jsonl").read_text().splitlines()]
        texts = [
            llm.generate(r["prompt"], SamplingParams(temperature=0, max_tokens=6, stop=r["stop"])).text
            for r in rows
        ]
    assert [x["text"] for x in items(output.with_suffix(".items.jsonl")).values()] == texts
    metrics = found["runs"][0]["tasks"]["talk"]["metrics"]
    assert metrics["exact_match"]["value"] == 0
    assert found["runs"][0]["tasks"]["talk"]["items"] == 5


def test_a_prompt_that_fills_the_context_is_skipped(dejavu: Dejavu, tmp_path: Path) -> None:
    path = tmp_path / "spaces.jsonl"
    rows = [{"prompt": "ab" + " " * n, "target": "x"} for n in (0, CONTEXT)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = dejavu("--tasks", str(path), "--max-tokens", "4", "--json")
    assert found.code == 0, found.err
    task = found.json["runs"][0]["tasks"]["spaces"]
    assert (task["items"], task["skipped"]) == (1, [{"line": 2, "reason": "too long"}])
