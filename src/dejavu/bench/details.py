"""Tables beside the one of speeds: latency of steps, memory, and where the time of a step goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dejavu.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dejavu.bench.results import Result
    from dejavu.bench.runner import Subject

QUANTILES = (0.5, 0.95, 0.99)
_BYTES_OF = {
    "attention": ("attention", "kv"),
    "mlp": ("mlp",),
    "head": ("head",),
    "predicting": ("predictors",),
}
"""Part of the time -> parts of the bytes. The leading bits that a sketch reads, and gates that choose, are "predictors"."""


@dataclass(frozen=True)
class Table:
    """A table of text under a title."""

    title: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def step_table(results: Sequence[Result]) -> Table:
    """Time to the first token, time between tokens, and what of the model a step ran."""
    headers = (
        "codec", "plan", "threads", "test", "first token ms", "step p50 ms", "p95", "p99",
        "neurons %", "heads %", "recall %", "choosing %",
    )  # fmt: skip
    out = []
    for result in results:
        times = [result.ttft, *(result.step_quantile(q) for q in QUANTILES)]
        shares = (result.density, result.heads_density, result.recall, result.predictor_share)
        out.append(
            (
                *_setting(result),
                *(_number(None if seconds is None else 1e3 * seconds) for seconds in times),
                *("" if share is None else f"{100 * share:.0f}" for share in shares),
            )
        )
    return Table("Latency", headers, out)


def memory_table(subject: Subject, results: Sequence[Result]) -> Table:
    """What each setting's weights take, and what its plan adds to them."""
    seen: dict[tuple[str, str], tuple[str, ...]] = {}
    for result in results:
        setting = result.case.setting
        seen[setting.codec, setting.plan] = (
            setting.codec,
            setting.plan,
            human_bytes(result.packed_bytes),
            human_bytes(result.predictor_bytes),
            f"{bits_per_weight(subject, result):.2f}",
            f"{32 / bits_per_weight(subject, result):.2f}",
        )
    headers = ("codec", "plan", "weights", "predictors", "bits/weight", "f32 / this")
    return Table("Memory", headers, [*seen.values()])


def bits_per_weight(subject: Subject, result: Result) -> float:
    """Of weights, and of what the plan adds, per parameter of the model."""
    return 8 * (result.packed_bytes + result.predictor_bytes) / subject.parameters


@dataclass(frozen=True)
class PartTime:
    """A part of a decode step: its time, and its bytes at the measured read bandwidth."""

    ms: float
    bytes: int | None = None
    """None: the part reads no weights that are counted, or what a batch reads by a plan."""
    bandwidth_ms: float | None = None


def part_times(result: Result) -> dict[str, PartTime] | None:
    """Where the time of a decode step goes, as the first thread sees it; None: not counted."""
    if result.part_ms is None:
        return None
    found = {}
    for part, ms in result.part_ms.items():
        names = _BYTES_OF.get(part)
        if names is None or result.touched is None:
            found[part] = PartTime(ms)
            continue
        size = sum(result.touched.get(name, 0) for name in names)
        found[part] = PartTime(ms, size, 1e3 * size / result.bandwidth if result.bandwidth else None)
    return found


def part_table(results: Sequence[Result]) -> Table:
    """`part_times` of every test that generates."""
    headers = (
        "codec", "plan", "threads", "test", "part", "ms/step", "% of step", "MB", "ms at bandwidth", "% of bandwidth",
    )  # fmt: skip
    out = []
    for result in results:
        parts = part_times(result) or {}
        total = sum(part.ms for part in parts.values()) or 1.0
        for name, part in parts.items():
            lowest = part.bandwidth_ms
            out.append(
                (
                    *_setting(result),
                    name,
                    _number(part.ms),
                    f"{100 * part.ms / total:.0f}",
                    "" if part.bytes is None else f"{part.bytes / 1e6:.2f}",
                    _number(lowest),
                    f"{100 * lowest / part.ms:.0f}" if lowest and part.ms else "",
                )
            )
    return Table("Where a step's time goes", headers, out)


def _setting(result: Result) -> tuple[str, str, str, str]:
    setting = result.case.setting
    return setting.codec, setting.plan, str(setting.threads), result.case.test.label


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
