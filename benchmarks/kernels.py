"""Speed of every kernel, beside that of another commit; no figure is shown where a result is wrong.

    python benchmarks/kernels.py --against main
    python benchmarks/kernels.py --against HEAD~5 --only 'mlp/*/576/*' --repeats 30 --json kernels.json

The working tree, uncommitted changes included, and the ref are built (cmake) and loaded by two processes, which run the
same cases on the same inputs in turn: new, old, old, new, ... Every case is checked against its plain twin in both first.
docs/bench.md says what the columns are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import time
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from kernel_suite.builds import Build, git_ref, working_tree
from kernel_suite.cases import Sizes, cases
from kernel_suite.compare import check, measure
from kernel_suite.report import record, table
from kernel_suite.sides import Side
from rich.console import Console

from dejavu.cli.progress import StageBars
from dejavu.environment import describe_machine, usable_cpus, versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernel_suite.compare import Checked, Row

QUICK = Sizes(
    hot_bytes=16 << 10,
    cold_bytes=64 << 10,
    widths={"64": 96},
    context=32,
    prompt=16,
    layers={"64": 2},
    long=64,
)
SAMPLE, QUICK_SAMPLE = 0.006, 0.0005
"""Seconds of one sample, about."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, check, measure, print. 1: a check is red."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", metavar="REF", help="a commit, branch or tag to compare with")
    parser.add_argument(
        "--only", metavar="PATTERN", action="append", help="cases, with * and ?; may be repeated"
    )
    parser.add_argument("--repeats", type=int, default=24, help="pairs of samples of a case")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    sizes, cpus = QUICK if options.quick else Sizes(), sorted(usable_cpus())
    chosen = select(list(cases(sizes, len(cpus))), options.only)
    if options.list:
        print("\n".join(chosen))
        return 0
    if not chosen:
        parser.error(f"no case matches {options.only}; --list names them")
    if options.repeats < 1:
        parser.error("--repeats is at least 1")
    builds = [working_tree()] + ([git_ref(options.against)] if options.against else [])
    return compare(builds, chosen, sizes, options.repeats, options.quick, options.json, cpus)


def select(known: Sequence[str], patterns: Sequence[str] | None) -> list[str]:
    """Names that match one of the patterns; all without any."""
    return [name for name in known if not patterns or any(fnmatchcase(name, p) for p in patterns)]


def compare(
    builds: Sequence[Build],
    chosen: Sequence[str],
    sizes: Sizes,
    repeats: int,
    quick: bool,
    file: Path | None,
    cpus: Sequence[int],
) -> int:
    """Check and measure the cases of one or two builds; the exit status."""
    with contextlib.ExitStack() as stack:
        sides = []
        for role, build in zip(("new", "old"), builds, strict=False):
            sides.append(Side(f"{role} ({build.name})", build.folder, sizes, len(cpus)))
            stack.callback(sides[-1].close)
        new, old = sides[0], sides[1] if len(sides) > 1 else None
        bars = StageBars()
        stack.callback(bars.finish)
        bars.start("checking (cases)", len(chosen))
        checked = check(new, old, chosen, lambda name: bars.advance(1, name))
        bars.finish()
        if checked.red:
            print(f"no figures: {len(checked.red)} of {len(chosen)} checks are red", file=sys.stderr)
            for name, problem in checked.red.items():
                print(f"  {name}  {problem}", file=sys.stderr)
            return 1
        rows = []
        bars.start("timing (cases)", len(chosen))
        for name in chosen:  # a case that only the new side has is timed alone
            rows += measure(
                new,
                None if name in checked.not_comparable else old,
                [name],
                repeats=repeats,
                sample=QUICK_SAMPLE if quick else SAMPLE,
                cpus=cpus,
                cold_bytes=max(sizes.cold_bytes, 4096),
                told=lambda name: bars.advance(1, name),
            )
    show(builds, rows, checked)
    if file:
        file.write_text(json.dumps(as_json(builds, rows, checked, sizes), indent=1))
    return 0


def show(builds: Sequence[Build], rows: Sequence[Row], checked: Checked) -> None:
    """The table, and the cases that were not compared."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    against = builds[1].name if len(builds) > 1 else None
    title = f"{describe_machine().cpu}, {time.strftime('%Y-%m-%d')}, {builds[0].commit}"
    title += " with changes" if builds[0].changed else ""
    console.print(table(rows, title, against))
    if against:
        moved = [row for row in rows if row.beyond_noise]
        console.print(
            f"{len(rows) - len(checked.not_comparable)} cases compared with {against} ({builds[1].commit}); "
            f"{len(moved)} beyond the noise; {len(checked.not_comparable)} not comparable"
        )
        for name, reason in checked.not_comparable.items():
            console.print(f"  {name}  {reason}", style="yellow", markup=False)


def as_json(
    builds: Sequence[Build], rows: Sequence[Row], checked: Checked, sizes: Sizes
) -> dict[str, object]:
    """What was measured, with all samples, and on what."""
    sides = [{"name": b.name, "commit": b.commit, "changed": b.changed} for b in builds]
    return {
        "schema": 1,
        "kind": "kernels",
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *sys.argv]),
        "machine": asdict(describe_machine()),
        "versions": versions(),
        "builds": dict(zip(("new", "old"), sides, strict=False)),
        "sizes": asdict(sizes),
        "rows": [record(row) for row in rows],
        "check_errors": checked.errors,
        "not_comparable": checked.not_comparable,
    }


if __name__ == "__main__":
    sys.exit(main())
