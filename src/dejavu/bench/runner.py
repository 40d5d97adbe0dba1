"""Timing of cases, repeats interleaved: a slow moment of the machine then falls on all cases alike."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from dejavu.bench.results import Result, Run
from dejavu.bench.timing import time_test, warm_test
from dejavu.errors import InputError
from dejavu.recall import CHECKED_TOKENS, recall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dejavu.bench.cases import Case, Setting
    from dejavu.bench.timing import TimedExecutor
    from dejavu.codecs import Codec
    from dejavu.plan import AccessPlan


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
    choose: Callable[[Setting], AccessPlan | None]
    """The plan that a setting means; None: dense."""
    codec: Codec = "int8"
    """Used where none is asked for."""
    plans: tuple[str, ...] = ("off",)
    """By which it is measured: "off", "auto" or folders."""
    synthetic: bool = False
    fingerprint: str | None = None
    """Of the model's weights; synthetic ones have none."""
    path: Path | None = None
    """Where the model lies; None: synthetic weights."""


class Rival(Protocol):
    """Something else that is timed in the same rounds; it keeps its own times, and its failures to itself."""

    def warm_up(self, text: NDArray[np.int32]) -> None:
        """Load what is needed, and run shortly."""

    def run(self, text: NDArray[np.int32]) -> None:
        """Time one repeat."""


@dataclass
class _Running:
    """A case while it is measured."""

    case: Case
    executor: TimedExecutor
    runs: list[Run] = field(default_factory=list)


def run_cases(
    subject: Subject,
    cases: Sequence[Case],
    *,
    repeats: int = 5,
    read_bandwidth: Callable[[int], float] | None = None,
    progress: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    rivals: Sequence[Rival] = (),
) -> list[Result]:
    """Load the model once per setting, warm every case up, then time all of them `repeats` times in turn.

    Args:
        subject: the model.
        cases: what to time.
        repeats: at least 1.
        read_bandwidth: threads -> bytes/s; measured before and after each run, as a shared machine's changes by the second.
        progress: called with a description before each step.
        clock: seconds.
        rivals: run after our cases in every round.

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
    try:
        for setting in dict.fromkeys(case.setting for case in cases):
            say(f"loading {_setting(setting)}")
            executors[setting] = subject.load(setting)
        running = [_Running(case, executors[case.setting]) for case in cases]
        for item in running:
            say(f"warming up {_describe(item.case)}")
            time_test(item.executor, warm_test(item.case.test), subject.tokens, time.perf_counter)
        for rival in rivals:
            say(f"warming up {rival}")
            rival.warm_up(subject.tokens)
        for repeat in range(repeats):
            for item in running:
                say(f"{repeat + 1}/{repeats} {_describe(item.case)}")
                setting = item.case.setting
                measure = partial(read_bandwidth, setting.threads) if read_bandwidth else None
                before = measure() if measure else None
                run = time_test(
                    item.executor, item.case.test, subject.tokens, clock, planned=setting.plan != "off"
                )
                if measure and before:
                    run = replace(run, bandwidth=statistics.harmonic_mean((before, measure())))
                item.runs.append(run)
            for rival in rivals:
                say(f"{repeat + 1}/{repeats} {rival}")
                rival.run(subject.tokens)
        recalls = {}
        for setting in dict.fromkeys(item.case.setting for item in running if item.case.test.kind == "tg"):
            if setting.plan != "off":
                say(f"checking {_setting(setting)}")
                layers = recall(executors[setting], subject.tokens[:CHECKED_TOKENS])
                recalls[setting] = sum(layers) / len(layers)
        return [_result(item, recalls) for item in running]
    finally:
        for executor in executors.values():
            executor.close()


def _describe(case: Case) -> str:
    return f"{case.test.label}: {_setting(case.setting)}"


def _setting(setting: Setting) -> str:
    plan = "" if setting.plan == "off" else f", plan {setting.plan}"
    return f"{setting.codec}, {setting.kv_dtype} cache, {setting.threads} threads{plan}"


def _result(item: _Running, recalls: Mapping[Setting, float]) -> Result:
    return Result(
        item.case,
        tuple(item.runs),
        packed_bytes=item.executor.packed.nbytes,
        predictor_bytes=item.executor.plan_nbytes,
        recall=recalls.get(item.case.setting) if item.case.test.kind == "tg" else None,
    )
