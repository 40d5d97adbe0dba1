"""The generator of docs/results.md: parts run once for a code and go on after an interruption; tables go between marks."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

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


def make_results(folder: Path, code: str = "abc1234") -> Any:
    found = suite("running").Results(folder)
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


def test_tables_go_between_the_marks_and_all_else_stays(results: Any) -> None:
    fill, tables = suite("document").fill, suite("tables").TABLES
    document = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert fill(document, results) == (
        document,
        sorted(tables, key=lambda name: document.index(f"begin {name} ")),
    )
    metrics = {"acc": {"value": 0.5, "stderr": 0.01}}
    text = {"perplexity": {"value": 25.08, "stderr": 0.5}, "ppl_ratio": {"value": 1.0011, "stderr": 0.0004}}
    run = {
        "name": "int8",
        "tasks": {"copa": {"items": 100, "metrics": metrics}},
        "average": {"value": 0.5, "stderr": 0.01},
        "texts": {"heldout": {"metrics": text}},
    }
    finish(results, "relu/eval", json.dumps({"runs": [run]}))
    row = {"block": "mlp", "codec": "int8", "density": 0.1, "share": 0.123}
    finish(results, "opt-1.3b/blocks-int8", json.dumps({"rows": [row]}))
    rows = [
        {"name": "int8", "ppl_ratio": 1.002, "text": "a"},
        {"name": "int8", "tokens_per_s": 84, "spread": 4},
    ]
    finish(results, "model/frontier", "\n".join(map(json.dumps, rows)), ".jsonl")
    filled, kept = fill(document, results)
    assert set(tables) - set(kept) == {"relu quality", "blocks", "frontier"}
    for line in (
        "| copa, 100 items | 50.0 ± 1.0 |",
        "| heldout: perplexity | 25.08 ± 0.50 |",
        "| heldout: over f32's | 1.0011 ± 0.0004 |",
        "| 0.1 | 0.12 |  |",
        "| int8 | 1.002 | 84.0 ± 4.0 |",
        "`make relu/eval`  \n(2026-11-22, Xeon, 2 cores, code abc)",
    ):
        assert line in filled
    # Once more: nothing but the same tables.
    assert fill(filled, results) == (filled, kept)
    with pytest.raises(SystemExit, match="differ in: kernels"):
        fill(document.replace("begin kernels", "began kernels"), results)


def test_parts_follow_what_they_read_and_name_no_path_of_the_machine() -> None:
    parts = suite("parts")
    known = parts.parts(parts.FULL, "smollm2", adapted=True, peer=True)
    names = [part.name for part in known]
    assert len(names) == len(set(names)) == len({part.result for part in known})
    for at, each in enumerate(known):
        assert set(each.after) <= set(names[:at])
        assert all("  " not in command and " /" not in command for command in each.commands)
    assert len(parts.parts(parts.FULL, "smollm2", adapted=False, peer=False)) == len(known) - 3
