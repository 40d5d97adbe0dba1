"""What timing a case gave: the repeats, and the statistics over them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dejavu.bench.cases import Case


@dataclass(frozen=True)
class Run:
    """One repeat of a test."""

    seconds: float
    """pp: of the prompt; tg: of all decode steps together."""
    first: float | None
    """Seconds from an empty cache to the first logits: of the prompt (tg: of the tokens before, or of the first step).

    None: a peer took the tokens before one by one.
    """
    steps: tuple[float, ...] = ()
    """tg: seconds of each decode step."""
    touched: Mapping[str, int] | None = None
    """tg: bytes that a decode step of the batch read, by part, at the test's mean context; None: not known."""
    stats: Mapping[str, Any] = field(default_factory=dict)
    """tg: `last_stats` of the executor over these steps."""
    bandwidth: float | None = None
    """Sequential read bandwidth in bytes/s with as many threads, measured before and after; None: not measured."""


@dataclass(frozen=True)
class Result:
    """Times of one case, in the order of the repeats."""

    case: Case
    runs: tuple[Run, ...]
    packed_bytes: int = 0
    """Of the weights in memory, as they were packed for the setting."""
    predictor_bytes: int = 0
    """Of what the plan adds to them: predictors, compensators, leading bits of the head."""
    plan_sha256: str | None = None
    """`plan_digest` of the plan that it ran by; None: dense."""
    recall: float | None = None
    """tg by a plan: of as many neurons as were selected, those with the largest values, share that was; mean of layers."""

    @property
    def seconds(self) -> tuple[float, ...]:
        """Of each repeat."""
        return tuple(run.seconds for run in self.runs)

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
        return half_quartiles(self.tokens_per_s)

    @property
    def ms_per_token(self) -> float:
        """Median milliseconds per token of a sequence: of a prompt token (pp) or a decode step (tg)."""
        return 1000 * statistics.median(self.seconds) / self.case.test.tokens

    @property
    def ttft(self) -> float | None:
        """Median seconds from an empty cache to the first logits; None: not measured."""
        return quantile([run.first for run in self.runs if run.first is not None], 0.5)

    def step_quantile(self, q: float) -> float | None:
        """tg: quantile of the seconds of a decode step (inter-token latency), over the steps of all repeats."""
        return quantile([step for run in self.runs for step in run.steps], q)

    @property
    def touched(self) -> dict[str, int] | None:
        """tg: bytes that a decode step of the batch reads, by part, mean of the repeats; None: not known."""
        found = [run.touched for run in self.runs if run.touched is not None]
        if not found:
            return None
        return {part: round(statistics.fmean(touched[part] for touched in found)) for part in found[0]}

    @property
    def step_bytes(self) -> int | None:
        """tg: all of `touched`."""
        return None if self.touched is None else sum(self.touched.values())

    @property
    def bytes_per_s(self) -> float | None:
        """tg: touched bytes per second at the median time."""
        return None if self.step_bytes is None else self.step_bytes * 1000 / self.ms_per_token

    @property
    def bandwidth(self) -> float | None:
        """Sequential read bandwidth in bytes/s over the repeats (the harmonic mean); None: not measured."""
        found = [run.bandwidth for run in self.runs if run.bandwidth]
        return statistics.harmonic_mean(found) if found else None

    @property
    def bandwidth_share(self) -> float | None:
        """tg: touched bytes per second over the bandwidth beside, median of the repeats: 1.0 is the speed of memory."""
        if self.step_bytes is None:
            return None
        size = self.step_bytes * self.case.test.tokens
        return quantile([size / run.seconds / run.bandwidth for run in self.runs if run.bandwidth], 0.5)

    @property
    def density(self) -> float | None:
        """tg: share of the neurons that ran, mean over layers and repeats; dense: 1."""
        return self._mean(lambda stats: float(np.mean(stats["neurons"])) if stats["tokens"] else 1.0)

    @property
    def heads_density(self) -> float | None:
        """tg: share of the heads that ran; dense: 1."""
        return self._mean(lambda stats: float(np.mean(stats["heads"])) if stats["tokens"] else 1.0)

    @property
    def predictor_share(self) -> float | None:
        """tg: share of the time spent scoring and picking; None where the engine did not count it."""
        return self._mean(lambda stats: float(stats["predictor_share"]) if stats["decoded"] else None)

    @property
    def part_ms(self) -> dict[str, float] | None:
        """tg: milliseconds of a decode step of the batch by part, mean of the repeats; None: not counted.

        Eight sequences at most go through the kernels that count.
        """
        found = [run.stats["ms"] for run in self.runs if run.stats.get("decoded")]
        if not found:
            return None
        batch = self.case.test.batch
        return {part: batch * statistics.fmean(ms[part] for ms in found) for part in found[0]}

    def _mean(self, value: Callable[[Mapping[str, Any]], float | None]) -> float | None:
        found = [x for x in (value(run.stats) for run in self.runs if run.stats) if x is not None]
        return statistics.fmean(found) if found else None


def half_quartiles(values: tuple[float, ...]) -> float:
    """Half the distance between the quartiles; 0 for a single value."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float(high - low) / 2


def quantile(values: list[float], q: float) -> float | None:
    """The `q` quantile; None of no values."""
    return float(np.quantile(values, q)) if values else None
