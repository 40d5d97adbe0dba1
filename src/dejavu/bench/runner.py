"""Timing of cases, repeats interleaved: a slow moment of the machine then falls on all cases alike."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dejavu.bench.cases import Case, Setting, Test
from dejavu.errors import InputError, NumericsError
from dejavu.executor import Executor
from dejavu.llm import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from dejavu.codecs import Codec

_WARM_STEPS = 4
_WARM_PROMPT = 32


class TimedExecutor(Executor, Protocol):
    """What is timed: an executor that also knows the bytes it touches."""

    def touched_bytes(self, context: int) -> Mapping[str, int]:
        """Bytes read to decode one token after `context` others: by part, the cache under "kv"."""


@dataclass(frozen=True)
class Subject:
    """The model that is measured, and how to load it under a setting."""

    name: str
    parameters: int
    max_context: int
    size: Callable[[Codec], int]
    """Bytes of all packed weights in a codec."""
    tokens: NDArray[np.int32]
    """The text that is processed, in tokens; repeated where a test needs more."""
    load: Callable[[Setting], TimedExecutor]
    codec: Codec = "int8"
    """Used where none is asked for."""
    synthetic: bool = False
    fingerprint: str | None = None
    """Of the model's weights; synthetic ones have none."""


@dataclass(frozen=True)
class Result:
    """Times of one case, in the order of the repeats."""

    case: Case
    seconds: tuple[float, ...]
    step_bytes: int | None = None
    """tg: bytes touched by one decode step of the batch at the test's mean context; pp, or by a plan: None."""
    bandwidth: float | None = None
    """Measured sequential read bandwidth in bytes/s with as many threads; None: not measured."""

    @property
    def tokens_per_s(self) -> tuple[float, ...]:
        """Of each repeat: tokens of all sequences together."""
        count = self.case.test.tokens * self.case.test.batch
        return tuple(count / seconds for seconds in self.seconds)

    @property
    def median(self) -> float:
        """Median tokens/s."""
        return statistics.median(self.tokens_per_s)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles of tokens/s; 0 for a single repeat."""
        low, high = np.quantile(self.tokens_per_s, [0.25, 0.75])
        return float(high - low) / 2

    @property
    def ms_per_token(self) -> float:
        """Median milliseconds per token of a sequence: of a prompt token (pp) or a decode step (tg)."""
        return 1000 * statistics.median(self.seconds) / self.case.test.tokens

    @property
    def bytes_per_s(self) -> float | None:
        """tg: touched bytes per second at the median time."""
        return None if self.step_bytes is None else self.step_bytes * 1000 / self.ms_per_token

    @property
    def bandwidth_share(self) -> float | None:
        """`bytes_per_s` over `bandwidth`: 1.0 is the speed of memory."""
        rate = self.bytes_per_s
        return None if rate is None or not self.bandwidth else rate / self.bandwidth


@dataclass
class _Running:
    """A case while it is measured."""

    case: Case
    executor: TimedExecutor
    seconds: list[float] = field(default_factory=list)


def run_cases(
    subject: Subject,
    cases: Sequence[Case],
    *,
    repeats: int = 5,
    read_bandwidth: Callable[[int], float] | None = None,
    progress: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Result]:
    """Load the model once per setting, warm every case up, then time all of them `repeats` times in turn.

    Args:
        subject: the model.
        cases: what to time.
        repeats: at least 1.
        read_bandwidth: threads -> bytes/s; measured once a round for each thread count.
        progress: called with a description before each step.
        clock: seconds.

    Raises:
        InputError: `repeats` below 1, or a test longer than the model's context.
        NumericsError: the model's logits are not finite; such a run proves nothing.
    """
    if repeats < 1:
        raise InputError(f"{repeats} repeats", fix="use -r 1 or more")
    for test in dict.fromkeys(case.test for case in cases):
        if test.tokens + test.depth > subject.max_context:
            raise InputError(
                f"{test.label} needs a context of {test.tokens + test.depth} tokens; {subject.name} has "
                f"{subject.max_context}",
                fix="use smaller -p, -n or -d",
            )
    say = progress or (lambda _: None)
    executors: dict[Setting, TimedExecutor] = {}
    bandwidths: dict[int, list[float]] = {case.setting.threads: [] for case in cases}
    try:
        for setting in dict.fromkeys(case.setting for case in cases):
            say(f"loading {_setting(setting)}")
            executors[setting] = subject.load(setting)
        running = [_Running(case, executors[case.setting]) for case in cases]
        for item in running:
            say(f"warming up {_describe(item.case)}")
            _warm_up(item, subject.tokens)
        for repeat in range(repeats):
            for threads, values in bandwidths.items():
                if read_bandwidth is not None:
                    values.append(read_bandwidth(threads))
            for item in running:
                say(f"{repeat + 1}/{repeats} {_describe(item.case)}")
                item.seconds.append(_time_test(item.executor, item.case.test, subject.tokens, clock))
        return [_result(item, bandwidths[item.case.setting.threads]) for item in running]
    finally:
        for executor in executors.values():
            executor.close()


def _describe(case: Case) -> str:
    return f"{case.test.label}: {_setting(case.setting)}"


def _setting(setting: Setting) -> str:
    plan = "" if setting.plan == "off" else f", plan {setting.plan}"
    return f"{setting.codec}, {setting.kv_dtype} cache, {setting.threads} threads{plan}"


def _result(item: _Running, bandwidths: Sequence[float]) -> Result:
    test = item.case.test
    known = item.case.setting.plan == "off" or test.batch == 1  # sequences of a batch share what they select
    return Result(
        item.case,
        tuple(item.seconds),
        step_bytes=_step_bytes(item.executor, test) if test.kind == "tg" and known else None,
        bandwidth=statistics.median(bandwidths) if bandwidths else None,
    )


def _step_bytes(executor: TimedExecutor, test: Test) -> int:
    """Weights are read once a step for the whole batch, the cache of every sequence."""
    parts = executor.touched_bytes(test.depth + test.tokens // 2)
    return sum(size * (test.batch if part == "kv" else 1) for part, size in parts.items())


def _time_test(
    executor: TimedExecutor,
    test: Test,
    text: NDArray[np.int32],
    clock: Callable[[], float],
    *,
    warm: bool = False,
) -> float:
    """Seconds of one run."""
    if test.kind == "pp":
        tokens = sequence(text, 0, min(test.tokens, _WARM_PROMPT) if warm else test.tokens)
        cache = executor.new_cache()
        start = clock()
        for block in _blocks(tokens):
            logits = executor.prefill(block, cache)
    else:
        steps = min(test.tokens, _WARM_STEPS) if warm else test.tokens
        # Each sequence reads another part of the text. The text's own tokens are fed, not the model's: every
        # codec then does the same work.
        rows = [sequence(text, i * text.size // test.batch, test.depth + steps) for i in range(test.batch)]
        caches = [executor.new_cache() for _ in rows]
        for row, cache in zip(rows, caches, strict=True):
            for block in _blocks(row[: test.depth]):
                executor.prefill(block, cache)
        columns = np.ascontiguousarray(np.stack(rows)[:, test.depth :].T)  # [steps, batch]
        start = clock()
        for column in columns:
            logits = executor.decode(column, caches)
    seconds = clock() - start
    if not np.isfinite(logits).all():
        raise NumericsError(f"{test.label}: the logits are not finite", fix="check the model's weights")
    return seconds


def _warm_up(item: _Running, text: NDArray[np.int32]) -> None:
    test = item.case.test
    short = Test(test.kind, test.tokens, test.batch)
    _time_test(item.executor, short, text, time.perf_counter, warm=True)


def _blocks(tokens: NDArray[np.int32]) -> Iterable[NDArray[np.int32]]:
    return (tokens[start : start + CHUNK] for start in range(0, tokens.size, CHUNK))


def sequence(text: NDArray[np.int32], start: int, count: int) -> NDArray[np.int32]:
    """`count` tokens of `text` from `start` on, which begins again at its end."""
    return text[np.arange(start, start + count) % text.size]
