"""Peers in the rounds of a benchmark: each case of a peer runs once a round, and a failure ends that case alone."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dejavu.bench.cases import Case, Setting
from dejavu.bench.results import Result, Run
from dejavu.bench.timing import tokens_of, warm_test
from dejavu.errors import DejavuError, PeerError, PeerMissingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dejavu.bench.cases import Test
    from dejavu.bench.peers.engines import Engine
    from dejavu.bench.peers.files import PeerFiles
    from dejavu.bench.peers.process import PeerProcess

Status = Literal["measured", "missing", "failed", "unsupported"]
_PAUSE = 0.05
"""Seconds before and after a peer runs: the threads of the one before go to sleep."""


@dataclass
class Contestant:
    """A peer under a setting: one process, started anew after it died.

    `context` is the largest number of positions that a test needs.
    """

    engine: Engine
    variant: str
    setting: Setting
    python: str
    files: PeerFiles
    context: int
    version: str = ""
    peak_rss: int = 0
    _process: PeerProcess | None = None

    def run(self, test: Test, tokens: NDArray[np.int32]) -> Run:
        """Run a test once on `tokens` [batch, depth + tokens].

        Raises:
            PeerError: it failed.
            DejavuError: the model has no form that it reads.
        """
        process = self._ready()
        answer = process.call("time", kind=test.kind, rows=tokens.tolist(), depth=test.depth)
        self.peak_rss = int(process.call("peak_rss"))
        try:
            first = None if answer["first"] is None else float(answer["first"])
            steps = tuple(map(float, answer["steps"]))
        except (TypeError, KeyError, ValueError) as error:
            raise PeerError(f"the peer answered {str(answer)[:80]!r}, which are no times") from error
        if len(steps) != (test.tokens if test.kind == "tg" else 0):
            raise PeerError(f"the peer timed {len(steps)} steps of {test.label}")
        if test.kind == "pp":
            if first is None:
                raise PeerError("the peer did not time the prompt")
            return Run(first, first)
        return Run(sum(steps), first if test.depth else steps[0], steps)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _ready(self) -> PeerProcess:
        """The process with the model loaded."""
        if self._process is not None and self._process.alive:
            return self._process
        self.close()
        path = self.files.find(self.engine, self.setting.codec)
        process = self.engine.start(self.python)
        try:
            process.call("load", path=str(path), threads=self.setting.threads, **self._arguments())
        except PeerError:
            process.close()
            raise
        self._process, self.version = process, process.version
        return process

    def _arguments(self) -> dict[str, Any]:
        more = dict(self.engine.variants[self.variant])
        if self.engine.caches is None:
            return more | {"dtype": self.engine.types[self.setting.codec]}
        return more | {"context": self.context, "kv": self.setting.kv_dtype}


@dataclass
class PeerCase:
    """A test of a peer, and what became of it."""

    contestant: Contestant
    test: Test
    status: Status = "measured"
    reason: str = ""
    """Why there is no result."""
    runs: list[Run] = field(default_factory=list)

    @property
    def result(self) -> Result | None:
        """Statistics; None: not measured."""
        if self.status != "measured" or not self.runs:
            return None
        return Result(Case(self.contestant.setting, self.test), tuple(self.runs))

    def ratio(self, ours: Result) -> float | None:
        """Median over the rounds of the peer's time / ours: above 1 we are faster."""
        if self.result is None:
            return None
        pairs = zip(self.result.seconds, ours.seconds, strict=True)
        return statistics.median(theirs / mine for theirs, mine in pairs)

    def __str__(self) -> str:
        variant = f" ({self.contestant.variant})" if self.contestant.variant else ""
        return f"{self.test.label}: {self.contestant.engine.name}{variant}"

    def warm_up(self, text: NDArray[np.int32]) -> None:
        """Load the model and run a short form of the test."""
        self._try(warm_test(self.test), text)
        self.runs.clear()

    def run(self, text: NDArray[np.int32]) -> None:
        """Add a repeat; nothing once it failed."""
        self._try(self.test, text)

    def _try(self, test: Test, text: NDArray[np.int32]) -> None:
        if self.status != "measured":
            return
        time.sleep(_PAUSE)
        try:
            self.runs.append(self.contestant.run(test, tokens_of(test, text)))
        except PeerMissingError as error:
            self.status, self.reason = "missing", f"{error.args[0]}: {self.contestant.engine.pip}"
        except PeerError as error:
            self.status, self.reason = "failed", str(error.args[0])
        except DejavuError as error:
            self.status, self.reason = "unsupported", str(error.args[0])
        time.sleep(_PAUSE)


def make_peer_cases(
    engines: Iterable[Engine], cases: Sequence[Case], *, python: str, files: PeerFiles
) -> list[PeerCase]:
    """Every test of every peer and variant at the bits of our cases, plans left out."""
    context = max(case.test.depth + case.test.tokens for case in cases)
    settings: dict[Setting, dict[Test, None]] = {}
    for case in cases:
        codec, kv, threads = case.setting.codec, case.setting.kv_dtype, case.setting.threads
        settings.setdefault(Setting(codec, kv, threads), {})[case.test] = None
    return [
        case
        for engine in engines
        for setting, tests in settings.items()
        for case in _cases_of(engine, setting, tests, python, files, context)
    ]


def _cases_of(
    engine: Engine, setting: Setting, tests: Iterable[Test], python: str, files: PeerFiles, context: int
) -> Iterator[PeerCase]:
    reason = ""
    if setting.codec not in engine.types:
        reason = (
            f"{engine.name} has nothing at the bits of {setting.codec}, only of {', '.join(engine.types)}"
        )
    elif engine.caches is not None and setting.kv_dtype not in engine.caches:
        reason = f"its cache is compared as {', '.join(engine.caches)}, not {setting.kv_dtype}"
    for variant in engine.variants:
        contestant = Contestant(engine, variant, setting, python, files, context)
        for test in tests:
            yield PeerCase(contestant, test, "unsupported" if reason else "measured", reason)
