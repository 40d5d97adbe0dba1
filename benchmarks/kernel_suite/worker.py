"""A process that times the kernels of one build: one JSON request a line, one JSON answer a line.

python -m kernel_suite.worker FOLDER      FOLDER holds the package `dejavu` with its compiled core
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel_suite.cases import Sizes, cases

if TYPE_CHECKING:
    from kernel_suite.cases import Work


class Bench:
    """The cases of the build that this process has loaded; one of them is set up at a time."""

    def __init__(self, sizes: dict[str, Any], threads: int) -> None:
        self._sizes = Sizes(**sizes)
        self._cases = cases(self._sizes, threads)
        self._work: Work | None = None
        self._calls = 0

    def load(self, case: str) -> dict[str, Any]:
        """Allocate and pack; the case before is freed first."""
        self._work = None
        self._work = self._cases[case].set_up(self._sizes)
        self._calls = 0
        return {name: getattr(self._work, name) for name in ("rows", "bytes", "cold", "flops", "threads")}

    def check(self) -> float:
        """Error over what is allowed."""
        return self._loaded.error()

    def time(self, calls: int, cpus: list[int]) -> float:
        """Seconds for that many calls on these CPUs, after one more that is not timed."""
        work, first = self._loaded, self._calls
        os.sched_setaffinity(0, cpus)
        work.run(first)
        start = time.perf_counter()
        for i in range(first + 1, first + 1 + calls):
            work.run(i)
        seconds = time.perf_counter() - start
        self._calls = first + 1 + calls
        return seconds

    def bandwidth(self, threads: int, nbytes: int, cpus: list[int]) -> float:
        """Bytes/s of reading memory in sequence."""
        from dejavu import _core

        os.sched_setaffinity(0, cpus)
        return float(_core.read_bandwidth(threads, nbytes, 1))

    @property
    def _loaded(self) -> Work:
        if self._work is None:
            raise RuntimeError("no case is loaded")
        return self._work


def load_package(folder: Path) -> None:
    """Make `dejavu` the one in `folder`, whatever is installed."""
    # The finder of an editable install would put its own in place of it.
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
    sys.path.insert(0, str(folder))
    import dejavu

    found = Path(str(dejavu.__file__)).resolve().parent.parent
    if found != folder.resolve():
        raise SystemExit(f"dejavu of {found} was loaded instead of that of {folder}")


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything prints must not get between the answers
    load_package(Path(sys.argv[1]))
    bench: Bench | None = None
    for line in sys.stdin:
        request = json.loads(line)
        method = request.pop("do")
        try:
            if method == "start":
                bench = Bench(**request)
                answer: dict[str, Any] = {"value": None}
            else:
                answer = {"value": getattr(bench, method)(**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
