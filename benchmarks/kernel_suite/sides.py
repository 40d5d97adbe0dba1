"""One build in a process of its own, driven by requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernel_suite.cases import Sizes

SUITE = Path(__file__).resolve().parents[1]


class CaseError(Exception):
    """A build cannot run a case; the message is its own error."""


class Side:
    """The process; methods of `kernel_suite.worker.Bench` are called through `ask`."""

    def __init__(self, name: str, folder: Path, sizes: Sizes, threads: int) -> None:
        self.name = name
        paths = [str(SUITE), str(SUITE.parent / "tests")]  # tests: the table of tolerances
        alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # NumPy's threads spin after a product
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kernel_suite.worker", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **alone, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self.ask("start", sizes=asdict(sizes), threads=threads)

    def ask(self, method: str, **arguments: Any) -> Any:
        """What the method returns.

        Raises:
            CaseError: it raised something.
            RuntimeError: the process ended.
        """
        to, answers = self._process.stdin, self._process.stdout
        assert to is not None
        assert answers is not None
        try:
            print(json.dumps({"do": method, **arguments}), file=to, flush=True)
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process of {self.name} ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise CaseError(answer["error"])
        return answer["value"]

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()
