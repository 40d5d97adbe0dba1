"""Measure everything that docs/results.md shows, write its tables and those of other pages, and make the HTML pages.

    python benchmarks/results.py --data DATA -o results/ [--peer-python PYTHON]
    python benchmarks/results.py --data DATA -o results/ --dry-run
    python benchmarks/results.py --data DATA -o results/ --only 'relu/*'

DATA has heldout.jsonl, moby_dick.txt, calibration.jsonl and tasks/*.jsonl. Parts that are finished for this code, on this
machine, with these models and data, are not run again; Ctrl-C loses only what the part at work cannot keep, and the same
command goes on. Tables of which a part is not finished, and the prose around all of them, stay as they are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from results_suite.document import fill
from results_suite.parts import ADAPTED, FULL, TOY, Part, parts
from results_suite.reading import Reader
from results_suite.running import DEJAVU, ROOT, Results
from results_suite.selection import PICTURE, look_ahead_picture

from dejavu.errors import DejavuError
from dejavu.models.loading import fetch
from dejavu.models.spec import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Sequence

DOCUMENTS = ("docs/results.md", "docs/numerics.md", "README.md")
"""That have places for tables."""
PICTURES = "docs"
PAGE = "docs/smollm2.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then write tables and pages. 1: a part failed; 130: interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of texts and tasks")
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder of results")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peer-python", type=Path, help="a Python that has llama-cpp-python")
    parser.add_argument(
        "--only", metavar="PATTERN", action="append", help="parts, with * and ?; may be repeated"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands and about how long they take"
    )
    parser.add_argument("--toy", action="store_true", help="tiny sizes, into OUTPUT/results.md: does it run?")
    options = parser.parse_args(arguments)

    folder: Path = options.output.absolute()
    check_inputs(options)
    results, model = Results(folder, inputs(options)), model_name(options)
    scale = TOY if options.toy else FULL
    known = parts(scale, model, peer=bool(options.peer_python))
    chosen = [
        part for part in known if not options.only or any(fnmatchcase(part.name, p) for p in options.only)
    ]
    if not chosen:
        parser.error(f"no part matches {options.only}; there are: {', '.join(part.name for part in known)}")
    waiting = [part for part in chosen if not results.finished(part, results.key(part, known))]
    if options.dry_run:
        list_parts(chosen, waiting, scale.time)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    link_inputs(folder, options)
    try:
        failed = run(results, waiting, known, scale.time)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    target = folder if options.toy else ROOT
    write(results, known, target)
    pages(results, known, target)
    return 1 if failed else 0


def model_name(options: argparse.Namespace) -> str:
    """How the commands, which run in the folder of results, are to call the model."""
    path = Path(options.model)
    return f"./base{path.suffix}" if path.exists() else str(options.model)


def check_inputs(options: argparse.Namespace) -> None:
    """Exit if something that is to be linked is not there."""
    if not options.data.exists():
        raise SystemExit(f"{options.data} does not exist")


def inputs(options: argparse.Namespace) -> dict[str, Path]:
    """Data and models, as the commands call them; a model that a dry run finds nowhere is left out."""
    found: dict[str, Path] = {"data": options.data}
    path = Path(options.model)
    try:
        found[model_name(options)] = (
            path if path.exists() else fetch(options.model, offline=options.dry_run or None)
        )
    except DejavuError:
        if not options.dry_run:
            raise
    return found


def link_inputs(folder: Path, options: argparse.Namespace) -> None:
    """Names in the folder of results for what lies elsewhere."""
    link(folder / "data", options.data)
    for name in ADAPTED:
        (folder / name).mkdir(exist_ok=True)
        link(folder / name / "model", SHIPPED / name)
    if options.peer_python:  # a link would hide the virtual environment
        script = folder / "peer-python"
        script.write_text(f'#!/bin/sh\nexec "{options.peer_python.absolute()}" "$@"\n')
        script.chmod(0o755)
    if Path(options.model).exists():
        link(folder / model_name(options), Path(options.model))


def link(name: Path, target: Path) -> None:
    """A symbolic link, in place of an older one."""
    name.unlink(missing_ok=True)
    name.symlink_to(target.absolute())


def list_parts(chosen: Sequence[Part], waiting: Sequence[Part], time: float) -> None:
    """What would be run."""
    for part in chosen:
        state = f"about {max(1, round(time * part.minutes))} min" if part in waiting else "finished"
        print(f"{part.name}  ({state})")
        for command in part.commands:
            print(f"    {command}{f' > {part.result}' if part.printed else ''}")
    total = sum(time * part.minutes for part in waiting)
    print(f"{len(waiting)} of {len(chosen)} parts to run, about {total / 60:.1f} hours on two cores")


def run(results: Results, waiting: Sequence[Part], known: Sequence[Part], time: float) -> list[str]:
    """Run parts in their order; names of those that failed, or wait for one that did."""
    failed: list[str] = []
    for i, part in enumerate(waiting):
        print(
            f"[{i + 1}/{len(waiting)}] {part.name}, about {max(1, round(time * part.minutes))} min",
            flush=True,
        )
        missing = [
            other.name
            for other in known
            if other.name in part.after and not results.finished(other, results.key(other, known))
        ]
        if missing:
            print(f"  not run: it needs {', '.join(missing)}", file=sys.stderr)
            failed.append(part.name)
        elif status := results.run(part, results.key(part, known)):
            print(f"  failed with status {status}: {' && '.join(part.commands)}", file=sys.stderr)
            failed.append(part.name)
    return failed


def write(results: Results, known: Sequence[Part], target: Path) -> None:
    """The tables and pictures, in the documents or, of toy sizes, in copies of them: below `target`."""
    documents = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    expected = {part.name for part in known}
    filled, kept = fill(documents, results, expected)
    (target / PICTURES).mkdir(exist_ok=True)
    for name, text in filled.items():
        (target / name).write_text(text, encoding="utf-8")
    left = f"; left as they are, for want of a part: {', '.join(kept)}" if kept else ""
    print(f"wrote the tables of {', '.join(filled)}{left}")
    read = Reader(results, expected)
    if (drawn := look_ahead_picture(read)) and not read.missing:
        (target / PICTURES / PICTURE).write_text(drawn, encoding="utf-8")
    picture = results.folder / "model/frontier.svg"
    if picture.exists() and results.note("model/frontier"):
        (target / PICTURES / "frontier.svg").write_bytes(picture.read_bytes())


def pages(results: Results, known: Sequence[Part], target: Path) -> None:
    """An HTML page for each model, of all that is finished of it. The model's, once it is whole, goes below `target`."""
    shown = ("eval", "bench", "plan-", "plan", "predictors", "analysis", "frontier")
    by_model: dict[str, list[Part]] = {}
    for part in known:
        group, _, name = part.name.partition("/")
        if name.startswith(shown) and not (group.startswith("opt") and name == "plan"):
            by_model.setdefault("model" if group in ADAPTED else group, []).append(part)
    for group, wanted in by_model.items():
        files = [part.result for part in wanted if results.note(part.name)]
        if not files:
            continue
        shipped = [f"{name}/model" for name in ADAPTED if any(f.startswith(f"{name}/") for f in files)]
        page = f"{group}.html"
        if subprocess.run([*DEJAVU, "report", *files, *shipped, "-o", page], cwd=results.folder).returncode:
            print(f"no page of {group}", file=sys.stderr)
        elif group == "model" and len(files) == len(wanted):
            (target / PAGE).write_bytes((results.folder / page).read_bytes())


if __name__ == "__main__":
    sys.exit(main())
