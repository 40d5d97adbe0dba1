"""The generator of docs/results.md: parts run once for a code and go on after an interruption; tables go between marks."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import typer

from dejavu.cli.app import app
from dejavu.models.spec import SHIPPED, SHIPPED_MODELS
from dejavu.plan.choice import own_plans
from tiny_chat import build_tiny_chat
from training_texts import documents, write_jsonl

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parent.parent
SCRIPT = """
import pathlib, sys
out, *more = sys.argv[1:]
path = pathlib.Path(out)
done = path.read_text() if path.exists() else ""
path.write_text(done + " ".join(["row", *more]) + "\\n")
print('{"printed": 1}')
sys.exit(pathlib.Path("fail").exists())
"""


@pytest.fixture(scope="module", autouse=True)
def _path() -> Any:
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path[:] = before


def suite(name: str) -> ModuleType:
    return importlib.import_module(f"results_suite.{name}")


def make_results(folder: Path, code: str = "abc1234", **options: Any) -> Any:
    found = suite("running").Results(folder, **options)
    found.__dict__["code"] = code  # what git would say
    return found


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/fake.py").write_text(SCRIPT)
    monkeypatch.setattr(suite("running"), "ROOT", tmp_path)
    (tmp_path / "out").mkdir()
    return make_results(tmp_path / "out")


def part(name: str, *after: str, **options: Any) -> Any:
    command = f"python benchmarks/fake.py {name}.json"
    return suite("parts").Part(name, (command,), 1.0, f"{name}.json", after, **options)


def test_finished_parts_are_left_alone_until_code_or_an_earlier_part_changes(results: Any) -> None:
    first, second = part("one"), part("two", "one")
    known = [first, second]
    run = importlib.import_module("results").run
    assert run(results, known, known, 1.0) == []
    assert all(results.finished(p, results.key(p, known)) for p in known)
    assert (results.folder / "two.json").read_text() == "row\n"
    other = make_results(results.folder, "def5678")
    assert not other.finished(first, other.key(first, known))
    changed = [suite("parts").Part("one", (*first.commands, *first.commands), 1.0, "one.json"), second]
    assert not results.finished(second, results.key(second, changed))
    (results.folder / "two.json").unlink()
    assert not results.finished(second, results.key(second, known))


def test_an_interrupted_part_goes_on_and_one_of_other_code_begins_anew(results: Any) -> None:
    only = part("one", resume="--resume")
    key = results.key(only, [only])
    (results.folder / "fail").touch()
    assert results.run(only, key) == 1
    assert results.note("one") is None
    (results.folder / "fail").unlink()
    assert results.run(only, key) == 0
    assert (results.folder / "one.json").read_text() == "row\nrow --resume\n"
    other = make_results(results.folder, "def5678")
    assert other.run(only, other.key(only, [only])) == 0
    assert (results.folder / "one.json").read_text() == "row\n"
    assert other.note("one")["code"] == "def5678"


def test_a_part_with_a_checkpoint_goes_on_only_where_it_left_one(results: Any) -> None:
    only = part("one", resume="--resume", checkpoint="one.checkpoint")
    key = results.key(only, [only])
    (results.folder / "fail").touch()
    assert results.run(only, key) == results.run(only, key) == 1
    assert (results.folder / "one.json").read_text() == "row\nrow\n"
    (results.folder / "one.checkpoint").touch()
    assert results.run(only, key) == 1
    assert (results.folder / "one.json").read_text() == "row\nrow\nrow --resume\n"
    other = make_results(results.folder, "def5678")  # would refuse the checkpoint of another code
    assert other.run(only, other.key(only, [only])) == 1
    assert not (results.folder / "one.checkpoint").exists()


def test_what_needs_a_part_that_failed_is_not_run(results: Any, capfd: pytest.CaptureFixture[str]) -> None:
    known = [part("one"), part("two", "one"), part("three")]
    (results.folder / "fail").touch()
    assert importlib.import_module("results").run(results, known, known, 1.0) == ["one", "two", "three"]
    shown = capfd.readouterr().err
    assert "not run: it needs one" in shown
    assert "failed with status 1: python benchmarks/fake.py three.json" in shown


def test_what_a_command_prints_is_its_result_once_it_is_whole(results: Any) -> None:
    printed = suite("parts").Part(
        "one", ("python benchmarks/fake.py beside",), 1.0, "group/one.json", printed=True
    )
    (results.folder / "fail").touch()
    assert results.run(printed, "key") == 1
    assert not (results.folder / "group/one.json").exists()
    (results.folder / "fail").unlink()
    assert results.run(printed, "key") == 0
    assert json.loads((results.folder / "group/one.json").read_text()) == {"printed": 1}


def finish(results: Any, name: str, text: str, ending: str = ".json") -> None:
    path = results.folder / f"{name}{ending}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    note = {"commands": [f"make {name}"], "date": "2026-11-22", "cpu": "Xeon", "cores": 2, "code": "abc"}
    notes = results.folder / "notes"
    notes.mkdir(exist_ok=True)
    (notes / f"{name.replace('/', '-')}.finished").write_text(json.dumps(note))


def read_documents() -> dict[str, str]:
    names = importlib.import_module("results").DOCUMENTS
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names}


def test_tables_go_between_the_marks_and_all_else_stays(results: Any) -> None:
    fill, tables = suite("document").fill, suite("tables").TABLES
    documents = read_documents()
    whole = "".join(documents.values())
    assert fill(documents, results) == (
        documents,
        sorted(tables, key=lambda name: whole.index(f"begin {name} ")),
    )
    metrics = {"acc": {"value": 0.5, "stderr": 0.01}}
    text = {"perplexity": {"value": 25.08, "stderr": 0.5}, "ppl_ratio": {"value": 1.0011, "stderr": 0.0004}}
    run = {
        "name": "int8",
        "tasks": {"copa": {"items": 100, "metrics": metrics}},
        "average": {"value": 0.5, "stderr": 0.01},
        "texts": {"heldout": {"metrics": text}},
    }
    finish(results, "relu/eval", json.dumps({"model": "relu/model", "runs": [run]}))
    for name in ("smollm2-sparse", "smollm2-half"):
        finish(results, f"{name}/eval", json.dumps({"model": name, "runs": [run]}))
    row = {"block": "mlp", "codec": "int8", "density": 0.1, "share": 0.123}
    finish(results, "opt-1.3b/blocks-int8", json.dumps({"rows": [row]}))
    rows = [
        {"name": "int8", "ppl_ratio": 1.002, "text": "a"},
        {"name": "int8", "tokens_per_s": 84, "spread": 4},
    ]
    finish(results, "model/frontier", "\n".join(map(json.dumps, rows)), ".jsonl")
    filled, kept = fill(documents, results)
    assert set(tables) - set(kept) == {"relu quality", "adapted quality", "blocks", "frontier"}
    assert {name for name in filled if filled[name] != documents[name]} == {"docs/results.md"}
    for line in (
        "|  | int8 |",
        "| copa, 100 items | 50.0 ± 1.0 |",
        "|  | smollm2-sparse, int8 | smollm2-half, int8 |",
        "| copa, 100 items | 50.0 ± 1.0 | 50.0 ± 1.0 |",
        "| heldout: perplexity | 25.08 ± 0.50 |",
        "| heldout: over f32's | 1.0011 ± 0.0004 |",
        "| 0.1 | 0.12 |  |",
        "| int8 | 1.002 | 84.0 ± 4.0 |",
        "`make relu/eval`  \n(2026-11-22, Xeon, 2 cores, code abc)",
    ):
        assert line in filled["docs/results.md"]
    # Once more: nothing but the same tables.
    assert fill(filled, results) == (filled, kept)
    # In a whole run that has measured one of three codecs, the table of three stays.
    whole_run = {"relu/eval", *(f"opt-1.3b/blocks-{codec}" for codec in ("bf16", "int8", "int4"))}
    assert fill(documents, results, whole_run)[1] == sorted(
        [*kept, "blocks"], key=lambda name: whole.index(f"begin {name} ")
    )
    broken = documents["docs/results.md"].replace("begin kernels", "began kernels")
    with pytest.raises(SystemExit, match="differ in: kernels"):
        fill(documents | {"docs/results.md": broken}, results)


def test_parts_follow_what_they_read_and_name_no_path_of_the_machine() -> None:
    parts = suite("parts")
    known = parts.parts(parts.FULL, "smollm2", peer=True)
    names = [part.name for part in known]
    assert len(names) == len(set(names)) == len({part.result for part in known})
    for at, each in enumerate(known):
        assert set(each.after) <= set(names[:at])
        assert all("  " not in command and " /" not in command for command in each.commands)
    alone = {part.name for part in parts.parts(parts.FULL, "smollm2", peer=False)}
    needs_peer = {part.name for part in known if "./peer-python" in part.commands[0]}
    assert (
        needs_peer == set(names) - alone == {"model/frontier", *(n for n in names if n.startswith("peer/"))}
    )
    shipped = {name: own_plans(SHIPPED / name) for name in SHIPPED_MODELS}
    assert {name: tuple(map(str, plans)) for name, plans in shipped.items()} == parts.ADAPTED
    other = parts.parts(parts.FULL, "./base.gguf", peer=True)  # of which nothing comes adapted
    assert len(other) == len(known) - 9
    commands = [command for each in known for command in each.commands]
    assert any(
        "bench smollm2-half --codec int8 --plan off,plan,gentler/0.63 " in command for command in commands
    )
    assert any(" half-0.63=gentler/0.63@smollm2-half " in command for command in commands)


def selection_rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Of quality, speed and compensators."""
    figures = {
        "oracle": (1.02, 1.0),
        "random": (1234.5, None),
        "sketch4": (1.04, 0.93),
        "sketch4+2": (1.5, 0.7),
    }
    figures |= {"low_rank0": (1.3, 0.66), "low_rank1": (1.4, 0.62), "sketch3": (1.06, 0.88)}
    figures |= {"labels0": (3.0, 0.7)}
    rows = []
    for selector, (ratio, recall) in figures.items():
        for density in (0.7, 0.5, 0.3) if selector == "sketch4" else (0.5,):
            row = {"selector": selector, "density": density, "measured_density": 0.45, "ppl_ratio": ratio}
            row |= {"recall": recall, "precision": recall - 0.01} if recall else {}
            if selector != "oracle":
                row |= {"selector_bytes": 0 if recall is None else 12_345_678, "mlp_bytes_share": 0.6}
            rows += [{**row, "text": "a"}, {**row, "text": "b", "ppl_ratio": ratio + 0.1}]
            rows[-1] |= {"mlp_bytes_share": 0.7} if "mlp_bytes_share" in row else {}
    fast = {"selector": "sketch4", "density": 0.5, "tokens_per_s": 80, "speedup": 1.125, "spread": 0.02}
    filled = {"selector": "sketch4 + rank 64", "density": 0.5, "mlp_bytes_share": 0.75}
    compensated = [{**filled, "text": "a", "ppl_ratio": 1.03}, {**filled, "text": "b", "ppl_ratio": 1.12}]
    return rows, [fast | {"choosing_ms": 0.678}], compensated


def test_tables_of_selectors_say_what_choosing_takes_and_what_looking_ahead_costs(results: Any) -> None:
    rows, fast, compensated = selection_rows()
    ahead = [
        row for row in rows if row["selector"].startswith(("low_rank", "sketch4")) and row["density"] == 0.5
    ]
    lines = {
        "model/selectors": [row for row in rows if row["selector"] not in ("sketch4+2", "low_rank1")],
        "model/look-ahead": ahead,
        "model/selector-speed": fast,
        "model/compensated": compensated,
    }
    for name, found in lines.items():
        finish(results, name, "\n".join(map(json.dumps, found)), ".jsonl")
    finish(results, "model/predictors-1", "")

    def table(name: str) -> tuple[list[str], list[str]]:
        read = suite("reading").Reader(results)
        text = suite("tables").TABLES[name](read)
        return text.splitlines(), [note["commands"][0] for note in read.notes]

    shown, commands = table("selectors")
    assert shown[2:6] == [
        "| oracle | 0.5 | 1.020 | 1.120 | 1.00 | 0.99 |  |",
        "| random | 0.5 | 1,234 | 1,235 |  |  | 65% |",
        "| sketch, 4 bits | 0.7 | 1.040 | 1.140 | 0.93 | 0.92 | 65% |",
        "| sketch, 4 bits | 0.5 | 1.040 | 1.140 | 0.93 | 0.92 | 65% |",
    ]
    assert commands == ["make model/selectors"]
    shown, commands = table("predictors")
    assert [line.split(" | ")[0] for line in shown[2:]] == [
        "| sketch, 4 bits",
        "| sketch, 4 bits",
        "| low rank",
        "| sketch, 3 bits",
        "| low rank, of labels",
        "| sketch, 4 bits, 2 ahead",
        "| low rank, 1 ahead",
    ]
    at_half = "| sketch, 4 bits | 0.5 | 1.040 | 1.140 | 0.93 | 0.92 | 12.3 MB | 65% "
    assert shown[2] == at_half + "| 0.68 | 12.5 | 1.12 ± 0.02 |"
    assert shown[3].startswith("| sketch, 4 bits | 0.3 |")
    assert shown[3].endswith("|  |  |  |")
    assert commands == [
        f"make model/{name}" for name in ("selectors", "look-ahead", "selector-speed", "predictors-1")
    ]
    assert table("compensators")[0][2:] == [
        "| sketch, 4 bits | 0.5 | 64 | 1.040 | 1.030 | 1.140 | 1.120 | 65% | 75% |"
    ]
    shown, commands = table("look-ahead")
    assert shown[0].endswith("(look-ahead.svg)")
    assert shown[4:] == [
        "| low rank | 0.5 | 0 | 0.45 | 0.66 | 1.300 | 1.400 |",
        "| low rank | 0.5 | 1 | 0.45 | 0.62 | 1.400 | 1.500 |",
        "| sketch, 4 bits | 0.5 | 0 | 0.45 | 0.93 | 1.040 | 1.140 |",
        "| sketch, 4 bits | 0.5 | 2 | 0.45 | 0.70 | 1.500 | 1.600 |",
    ]
    assert commands == ["make model/look-ahead", "make model/predictors-1"]


def test_tables_beside_other_programs_say_what_each_took(results: Any) -> None:
    """From what the programs write, of hand-made times."""
    speed = importlib.import_module("speed")
    row = speed.Row("tiny", "int8", "Q8_0", "decode", [0.2, 0.4, 0.3], [0.6, 0.4, 0.6], 10, 100, [1e4] * 3)
    prompt = speed.Row("tiny", "int8", "Q8_0", "prefill", [0.5], [0.25], 100, 0, [1e4])
    batch = {"model": "tiny", "codec": "int8", "size": 8, "one": 0.03, "together": 0.06, "ratio": 4.0}
    document = {
        "cpu": "Xeon",
        "threads": 2,
        "bandwidth": [3.6e10, 5e10],
        "peer": "llama 1",
        "date": "2026-11-30",
    }
    document |= {"rows": [row.json(), prompt.json()], "batches": [batch]}
    finish(results, "peer/speed", json.dumps(document))
    gathered = {
        "codec": "bf16",
        "density": 0.1,
        "ms": {"dejavu": "1 ± 0", "torch": "7 ± 1"},
        "over_torch": 7.04,
    }
    finish(results, "opt-1.3b/gather", json.dumps({"rows": [gathered]}))
    found = {"greedy_texts_equal": "1 of 2", "first_differences": [None, {"token": 5, "gap": 0.221}]}
    found |= {"mean_kl": 3.14e-3, "median_kl": 2e-3, "same_top_1": 0.958}
    found |= {"our_perplexity": 21.44, "peer_perplexity": 21.536}
    itself = found | {"first_differences": [{"token": 4}, None]}
    finish(results, "peer/agreement", json.dumps(found))
    finish(results, "peer/agreement-f32", json.dumps(found))
    finish(results, "peer/agreement-q8", json.dumps({"emulated": found, "itself": itself, "in_step": found}))

    def table(name: str) -> list[str]:
        lines = suite("tables").TABLES[name](suite("reading").Reader(results)).splitlines()
        assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
        return lines[2:]

    assert table("beside") == [
        "| tiny | int8 / Q8_0 | decode | 30.00 ms ±33% | 60.00 ms | **2.00x** | 33% |",
        "| tiny | int8 / Q8_0 | prefill | 5.00 ms ±0% | 2.50 ms | **0.50x** |  |",
        "",
        "Xeon, 2 threads, read bandwidth 36 to 50 GB/s, llama 1, 2026-11-30",
    ]
    assert table("batches") == ["| tiny | int8 | 8 | 30.0 | 60.0 | 4.00x |"]
    assert table("gather") == ["| bf16 | 0.1 | 1 ± 0 | 7 ± 1 | 7.0x |  |  |"]
    agreed = table("agreement")
    assert [line.split(" | ")[0] for line in agreed] == [
        "| native f32, the file dequantised (`--as-f32`)",
        "| native f32",
        "| reference with 8-bit activations (`--as-q8`, emulated)",
        "| llama.cpp itself, fused attention (`itself`)",
        "| as emulated, near ties as llama.cpp has them (`in_step`)",
    ]
    assert agreed[1].endswith("| 1 of 2 | 3.1e-03 | 2.0e-03 | 95.8% | 21.4400 / 21.5360 |")
    assert [line.split(" | ", 1)[1] for line in table("first differences")] == [
        "none | 5: 0.22 |",
        "none | 5: 0.22 |",
        "none | 5: 0.22 |",
        "4 | none |",
        "none | 5: 0.22 |",
    ]


def test_the_picture_of_look_ahead_is_drawn_beside_the_page_from_finished_rows(
    results: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = importlib.import_module("results")
    root = results.folder / "root"
    for name, text in read_documents().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(program, "ROOT", root)
    program.write(results, [], root)
    assert not (root / "docs/look-ahead.svg").exists()
    finish(results, "model/look-ahead", "\n".join(map(json.dumps, selection_rows()[0])), ".jsonl")
    program.write(results, [], root)
    svg = (root / "docs/look-ahead.svg").read_text(encoding="utf-8")
    # Recall, and the ratio on the first text: two points of each kind, none of what was measured at one distance.
    for tip in ("low rank, 0.5: 62% at 1", "low rank, 0.5: 1.4 at 1", "sketch, 4 bits, 0.5: 1.5 at 2"):
        assert svg.count(f"<title>{tip}</title>") == 1
    assert svg.count("<circle") == 8


def commands_of(part_name: str) -> list[list[str]]:
    """Arguments of the commands of a part, in full and in toy size."""
    suite_parts = suite("parts")
    return [
        shlex.split(command)
        for scale in (suite_parts.FULL, suite_parts.TOY)
        for each in suite_parts.parts(scale, "smollm2", peer=False)
        if each.name == part_name
        for command in each.commands
    ]


def test_commands_of_predictors_are_ones_that_dejavu_train_takes() -> None:
    from dejavu.training.options import TrainOptions

    group: Any = typer.main.get_command(app)
    trained = suite("parts").TRAINED
    assert list(trained) == ["low_rank0", "low_rank1", "low_rank2", "labels0"]
    for selector, name in trained.items():
        for command in commands_of(name):
            assert command[:2] == ["dejavu", "train"]
            taken = group.commands["train"].make_context("train", command[2:]).params
            assert taken["lookahead"] == int(selector[-1])
            assert taken["learn"] == ("labels" if selector == "labels0" else None)
            assert str(taken["output"]) == name
            names = ("density", "uniform", "rank", "learn", "lookahead", "tokens")
            chosen = TrainOptions(taken["selector"], **{name: taken[name] for name in names})
            assert chosen.targets[0].density == 0.5


def test_commands_of_selectors_cover_what_the_tables_compare() -> None:
    selector_table, selection = importlib.import_module("selector_table"), suite("selection")
    full = {}
    for name in ("selectors", "look-ahead", "compensated", "selector-speed"):
        both = [selector_table.make_parser().parse_args(c[2:]) for c in commands_of(f"model/{name}")]
        full[name], _ = [set(selector_table.wanted(args)) for args in both]
    ahead = {
        (n, k) for names in selection.AHEAD.values() for n in names.values() for k in selection.DENSITIES
    }
    assert ahead == full["look-ahead"]
    assert full["compensated"] <= full["selectors"]
    assert full["selector-speed"] <= full["selectors"] | full["look-ahead"]
    assert {k for _, k in full["compensated"]} == {0.7, 0.6, 0.5, 0.4, 0.3}
    assert {k for _, k in full["selector-speed"]} == set(selection.DENSITIES)
    assert not {name for name, _ in full["selector-speed"]} & {"oracle", "random"}
    for predictor in ("low_rank0", "labels0"):
        assert {k for name, k in full["selectors"] if name == predictor} == {0.7, 0.6, 0.5, 0.4, 0.3}
    parse = selector_table.make_parser().parse_args
    with pytest.raises(SystemExit, match="no selector is called sketch9"):
        selector_table.wanted(parse(["quality", "--out", "x", "--at", "sketch9=.5"]))


def test_the_table_of_selectors_goes_on_with_the_rows_that_are_missing(tmp_path: Path) -> None:
    selector_table = importlib.import_module("selector_table")
    model = build_tiny_chat(tmp_path / "model", context=256)
    write_jsonl(tmp_path / "text.jsonl", documents(60, words=20))
    (tmp_path / "other.txt").write_text(" ".join(documents(4, words=20, seed=1)))
    out = tmp_path / "rows.jsonl"
    command = [
        "quality",
        "--model",
        str(model),
        "--text",
        str(tmp_path / "text.jsonl"),
        str(tmp_path / "other.txt"),
    ]
    command += [
        "--calibration",
        str(tmp_path / "text.jsonl"),
        "--tokens",
        "100",
        "--calibration-tokens",
        "300",
    ]
    command += [
        "--agreement-tokens",
        "100",
        "--selectors",
        "oracle,random,sketch4,sketch4+1,values5",
        "--densities",
        ".5",
    ]
    command += ["--at", "random=.3", "--out", str(out)]
    selector_table.main(command)
    first = out.read_text().splitlines()
    rows = [json.loads(line) for line in first]
    assert [(row["selector"], row["density"], row["text"]) for row in rows] == [
        (selector, density, text)
        for selector, density in (
            ("oracle", 0.5),
            ("random", 0.3),
            ("sketch4", 0.5),
            ("sketch4+1", 0.5),
            ("values5", 0.5),
        )
        for text in ("text.jsonl", "other.txt")
    ]
    assert rows[0]["recall"] == rows[0]["precision"] == 1
    assert "recall" not in rows[2]
    assert "selector_bytes" not in rows[0]
    assert rows[4]["recall"] == rows[5]["recall"] > rows[6]["recall"]
    # Four bits and a scale of gate and up, the other four and a scale of the chosen, and their down rows.
    k = rows[4]["measured_density"]
    assert rows[4]["mlp_bytes_share"] == pytest.approx((2 * 4.5 + k * (2 * 4.5 + 8.5)) / (3 * 8.5))
    # Five bits and a scale of gate and up, and the down rows of the chosen.
    k = rows[8]["measured_density"]
    assert rows[8]["mlp_bytes_share"] == pytest.approx((2 * 5.5 + k * 8.5) / (3 * 8.5))
    assert rows[8]["recall"] > rows[4]["recall"]
    out.write_text("\n".join(first[:5] + first[6:]) + "\n")
    selector_table.main(command)
    again = out.read_text().splitlines()
    assert again == first[:5] + first[6:] + [first[5]]
    selector_table.main(command)
    assert out.read_text().splitlines() == again


def test_a_dry_run_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = importlib.import_module("results")
    monkeypatch.setattr(suite("running").Results, "code", "abc1234")
    (tmp_path / "data").mkdir()
    (tmp_path / "python").write_text("")
    (tmp_path / "m.gguf").write_text("")
    command = ["--data", str(tmp_path / "data"), "-o", str(tmp_path / "out" / "here"), "--toy", "--dry-run"]
    command += ["--peer-python", str(tmp_path / "python")]
    command += ["--model", str(tmp_path / "m.gguf")]
    before = sorted(tmp_path.rglob("*"))
    assert results.main(command) == 0
    assert "./base.gguf" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    command[1] = str(tmp_path / "nowhere")
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        results.main(command)


def test_what_ships_is_on_the_page_of_its_base(results: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its folder, under a name that is not the machine's."""
    module, called = importlib.import_module("results"), []
    monkeypatch.setattr(
        module.subprocess, "run", lambda command, **_: called.append(command) or SimpleNamespace(returncode=0)
    )
    known = suite("parts").parts(suite("parts").TOY, "smollm2", peer=False)
    module.link_inputs(results.folder, SimpleNamespace(data=ROOT, peer_python=None, model="smollm2"))
    for name in ("model/eval-dense", "smollm2-half/eval"):
        finish(results, name, "{}")
    target = results.folder / "root"
    (target / "docs").mkdir(parents=True)
    (results.folder / "model.html").write_text("a page")
    module.pages(results, known, target)
    ((*_, first, second, place, flag, page),) = called
    assert (first, second, flag, page) == (
        "model/eval-dense.json",
        "smollm2-half/eval.json",
        "-o",
        "model.html",
    )
    assert (results.folder / place / "delta.json").is_file()
    assert not Path(place).is_absolute()
    assert not (target / module.PAGE).exists()  # which is of the whole
    for each in known:
        finish(results, each.name, "{}")
    module.pages(results, known, target)
    assert (target / module.PAGE).read_text() == "a page"


def test_keys_hold_the_content_of_what_the_commands_name(tmp_path: Path) -> None:
    for name in (
        "data/tasks/cb.jsonl",
        "data/heldout.jsonl",
        "adapted/plan/plan.json",
        "adapted/model.bin",
        "m.gguf",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    commands = {
        "tasks": "dejavu eval ./base.gguf --task-folder data/tasks",
        "text": "dejavu eval smollm2-sparse --text data/heldout.jsonl",
        "plan": "dejavu bench base.gguf --plan off,another/plan",
        "adapted": "dejavu eval another --codec int8",
        "nothing": "dejavu bench --shape opt-1.3b -o data.json",
    }
    parts = [suite("parts").Part(name, (command,), 1, "b.json") for name, command in commands.items()]
    parts.append(suite("parts").Part("later", ("dejavu report",), 1, "b.json", after=("text",)))
    inputs = {
        "data": tmp_path / "data",
        "another": tmp_path / "adapted",
        "./base.gguf": tmp_path / "m.gguf",
    }

    def keys() -> dict[str, str]:
        suite("running").content.cache_clear()
        found = make_results(tmp_path / "out", inputs=inputs)
        return {part.name: found.key(part, parts) for part in parts}

    before = keys()
    assert keys() == before
    for name, stale in {
        "data/tasks/cb.jsonl": {"tasks"},
        "data/heldout.jsonl": {"text", "later"},
        "adapted/model.bin": {"adapted"},
        "adapted/plan/plan.json": {"adapted", "plan"},
        "m.gguf": {"tasks"},
    }.items():
        (tmp_path / name).write_text("2")
        after = keys()
        assert {part for part in after if after[part] != before[part]} == stale, name
        before = after
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "another").symlink_to(tmp_path / "adapted")
    assert keys() == before


def test_the_code_of_a_part_is_that_of_the_benchmarks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        person = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *person, *arguments], check=True, capture_output=True)

    for name in ("benchmarks/x.py", "docs/x.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    monkeypatch.setattr(suite("running"), "ROOT", tmp_path)
    found = []
    for name in ("docs/x.md", "benchmarks/x.py"):
        found.append(suite("running").Results(tmp_path).code)
        (tmp_path / name).write_text("2")
    found.append(suite("running").Results(tmp_path).code)
    assert found[0] == found[1]
    assert found[2].startswith(f"{found[0]}+")
    git("commit", "-am", "y")
    assert suite("running").Results(tmp_path).code not in found
