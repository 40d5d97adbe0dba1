"""Checking all cases on both sides, then timing them finely interleaved."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kernel_suite.sides import CaseError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SET_UPS = 3
"""Times that the data of a case are allocated anew: where pages come to lie shifts a process by some per cent."""
SPIN = 0.004
"""Seconds after which the threads of a process that was timed sleep (csrc/pool.h)."""
NOTABLE, CHANCE = 0.01, 0.001
"""A difference is called one from this ratio on, and below this probability: there are 144 cases."""


class Asked(Protocol):
    """A side: `kernel_suite.sides.Side`, or a stand-in."""

    name: str

    def ask(self, method: str, **arguments: Any) -> Any: ...


@dataclass
class Row:
    """What was measured of one case."""

    case: str
    rows: int
    bytes: int
    cold: bool
    flops: int
    threads: int
    calls: int = 0
    """In each sample."""
    new: list[list[float]] = field(default_factory=list)
    """Seconds per call, by set-up."""
    old: list[list[float]] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)
    """Bytes/s of reading memory in sequence, once a set-up; of cold cases."""

    @property
    def seconds(self) -> float:
        """Median of a call of the new side."""
        return statistics.median(chain(*self.new))

    @property
    def by_set_up(self) -> list[list[float]]:
        """Time new / old of every pair."""
        return [[n / o for n, o in zip(*pair, strict=True)] for pair in zip(self.new, self.old, strict=True)]

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """Lower quartile, median and upper quartile of time new / old over all pairs; below 1 the new one is faster."""
        if not self.old:
            return None
        low, middle, high = np.quantile([*chain(*self.by_set_up)], (0.25, 0.5, 0.75))
        return float(low), float(middle), float(high)

    @property
    def beyond_noise(self) -> bool:
        """The median of every set-up lies on the same side of 1, so do nearly all pairs, and it is by more than 1%."""
        if self.ratio is None:
            return False
        medians = [statistics.median(ratios) for ratios in self.by_set_up]
        one_side = all(x < 1 for x in medians) or all(x > 1 for x in medians)
        return one_side and abs(self.ratio[1] - 1) > NOTABLE and self.chance < CHANCE

    @property
    def chance(self) -> float:
        """That so many pairs or more lie on one side of 1 where nothing differs (sign test)."""
        above = [ratio > 1 for ratio in chain(*self.by_set_up)]
        n, most = len(above), max(sum(above), len(above) - sum(above))
        return min(1.0, 2 * sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n)


@dataclass(frozen=True)
class Checked:
    """Of the checks."""

    errors: dict[str, dict[str, float]]
    """Side -> case -> error over what is allowed."""
    red: dict[str, str]
    """Case -> what is wrong."""
    not_comparable: dict[str, str]
    """Case -> why the old side does not run it."""


def check(
    new: Asked, old: Asked | None, names: Sequence[str], told: Callable[[str], None] = lambda _: None
) -> Checked:
    """Compare every case of both sides with its plain twin. A case that the new side cannot run is red."""
    sides = [new] if old is None else [new, old]
    found = Checked({side.name: {} for side in sides}, {}, {})
    for name in names:
        told(name)
        for side in sides:
            try:
                side.ask("load", case=name)
                error = float(side.ask("check"))
            except CaseError as problem:
                where = found.red if side is new else found.not_comparable
                where[name] = f"{side.name}: {problem}"
                continue
            found.errors[side.name][name] = error
            if not error <= 1:  # NaN too
                found.red[name] = f"{side.name}: {error:.3g} times the error that is allowed"
    return found


def measure(
    new: Asked,
    old: Asked | None,
    names: Sequence[str],
    *,
    repeats: int,
    sample: float,
    cpus: Sequence[int],
    cold_bytes: int,
    told: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Time the cases: samples of `sample` seconds in pairs, the order and the CPU changing from pair to pair."""
    found = []
    for name in names:
        told(name)
        row: Row | None = None
        for at in range(min(SET_UPS, repeats)):
            row = _set_up(new, old, name, row, repeats // SET_UPS or 1, sample, cpus, cold_bytes, at)
        assert row is not None
        found.append(row)
    return found


def _set_up(
    new: Asked,
    old: Asked | None,
    name: str,
    row: Row | None,
    pairs: int,
    sample: float,
    cpus: Sequence[int],
    cold_bytes: int,
    turn: int,
) -> Row:
    """Load the case on both sides and take its pairs."""
    sides = [new] if old is None else [new, old]
    facts = [side.ask("load", case=name) for side in sides]
    row = row or Row(name, **facts[0])
    everywhere = row.threads > 1
    where = list(cpus) if everywhere else [cpus[turn % len(cpus)]]
    if not row.calls:
        once = min(float(new.ask("time", calls=1, cpus=where)) for _ in range(3))
        row.calls = max(1, round(sample / once))
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for pair in range(pairs):
        if not everywhere:
            where = [cpus[(turn + pair) % len(cpus)]]
        # Both orders on every CPU.
        for side in sides if (pair // len(cpus)) % 2 == 0 else sides[::-1]:
            times[side.name].append(float(side.ask("time", calls=row.calls, cpus=where)) / row.calls)
            if everywhere:
                time.sleep(SPIN)
    row.new.append(times[new.name])
    if old is not None:
        row.old.append(times[old.name])
    if row.cold:
        row.bandwidth.append(
            float(new.ask("bandwidth", threads=row.threads, nbytes=cold_bytes, cpus=list(where)))
        )
    return row
