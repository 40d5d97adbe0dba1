"""Quality against speed: what each setting of the model has of both."""

from __future__ import annotations

import math
import statistics
from collections import ChainMap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu.report import Axis, Group, Point, Table, scatter_chart
from dejavu.results_page.reading import place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dejavu.results_page.collection import Collection

Held = tuple[str | None, str, str]
"""Fingerprint of weights, their codec, and that of the K/V cache."""

_GROUPS = {
    "dense": "dejavu, dense",
    "plan": "dejavu, by a plan",
    "adapted": "dejavu, adapted",
    "llama.cpp": "llama.cpp",
}
_UNKNOWN = "unknown: "
_SIZE = (480.0, 400.0)
_LEAST = 5e-4
"""Losses below are drawn here: what is measured does not tell them from none."""


@dataclass(frozen=True)
class Setting:
    """A way to run the model."""

    name: str
    group: str
    ratio: float
    """Perplexity over the base's, geometric mean over texts."""
    speed: float
    """Tokens/s, decoding one sequence."""
    spread: float


def from_rows(rows: Iterable[Mapping[str, Any]]) -> list[Setting]:
    """Of a file of benchmarks/frontier.py: the settings that have both figures; later rows replace earlier ones."""
    ratios: dict[str, dict[str, float]] = {}
    kinds, speeds = {}, {}
    for row in rows:
        if "ppl_ratio" in row:
            ratios.setdefault(row["name"], {})[row["text"]] = row["ppl_ratio"]
            kinds[row["name"]] = row["kind"]
        else:
            speeds[row["name"]] = row
    return [
        Setting(
            name.removeprefix("llama.cpp "),
            _GROUPS.get(kinds[name], kinds[name]),
            statistics.geometric_mean(ratios[name].values()),
            speeds[name]["tokens_per_s"],
            speeds[name]["spread"],
        )
        for name in ratios
        if name in speeds
    ]


def from_runs(collection: Collection) -> list[Setting]:
    """Of runs of `dejavu eval` that `dejavu bench` has timed: the same weights, codec, K/V cache and plan; each once."""
    timed, bases = _timed(collection), _base_perplexities(collection)
    found: dict[tuple[Held, str | None], Setting] = {}
    for source in collection.of("eval"):
        for run in source.data["runs"]:
            held, plan = (source.fingerprint, run["codec"], source.data["kv_dtype"]), run["plan_sha256"]
            record, ratio = timed.get(held, {}).get(plan), _ratio(run, bases)
            if record and ratio and (held, plan) not in found:
                group = _GROUPS["dense" if plan is None else "plan"]
                name = f"adapted, {run['name']}" if collection.adapted(source) else run["name"]
                speed, spread = record["tokens_per_s"], record["tokens_per_s_spread"]
                found[held, plan] = Setting(name, group, ratio, speed, spread)
    return [*found.values()]


def _timed(collection: Collection) -> dict[Held, Mapping[str | None, Mapping[str, Any]]]:
    """Of weights as they are held, by the plan's SHA-256 (None: dense), the record of its decoding.

    One with the shortest cache, and then the fastest. Plans and dense weights are compared with each other: what was timed
    in the same rounds, in one file, comes before what other files have of the same.
    """
    files: dict[Held, list[dict[str | None, Mapping[str, Any]]]] = {}
    for bench in collection.of("bench"):
        found: dict[Held, dict[str | None, Mapping[str, Any]]] = {}
        decoded = [r for r in bench.data["results"] if r["kind"] == "tg" and r["batch"] == 1]
        for record in sorted(decoded, key=_order):
            plans = found.setdefault((bench.fingerprint, record["codec"], record["kv_dtype"]), {})
            plans.setdefault(_digest(collection, record), record)
        for held, plans in found.items():
            files.setdefault(held, []).append(plans)
    return {held: ChainMap(*sorted(of_each, key=_completeness)) for held, of_each in files.items()}


def _order(record: Mapping[str, Any]) -> tuple[int, float]:
    """Shortest cache first, then the fastest."""
    return record["depth"], -record["tokens_per_s"]


def _completeness(plans: Mapping[str | None, Mapping[str, Any]]) -> tuple[int, tuple[int, float]]:
    """Most plans first, then by the first of their records."""
    return -len(plans), min(map(_order, plans.values()))


def chart(settings: list[Setting], title: str) -> str:
    """The frontier as an SVG."""
    groups: dict[str, list[Point]] = {
        name: [] for name in _GROUPS.values()
    }  # of the same colours on every chart
    for setting in settings:
        loss = max(setting.ratio - 1, _LEAST)
        groups.setdefault(setting.group, []).append(Point(setting.speed, loss, setting.name))
    return scatter_chart(
        title,
        [Group(name, points) for name, points in groups.items()],
        x=Axis("tokens/s"),
        y=Axis("perplexity above the base's", log=True, percent=True, low=_LEAST),
        pareto=("high", "low"),
        description="Loss of perplexity to the base model against tokens per second; right and low is better",
        size=_SIZE,
    )


def table(settings: list[Setting]) -> Table:
    """The numbers behind `chart`."""
    rows = [
        [s.name, s.group, f"{s.ratio:.4f}", f"{s.speed:.1f} ± {s.spread:.1f}"]
        for s in sorted(settings, key=lambda s: s.ratio)
    ]
    return Table("By quality", ["setting", "", "ppl ratio", "tokens/s"], rows)


def sentence(settings: list[Setting], *, limit: float = 1.02) -> str:
    """The fastest of those that keep the quality; empty if none does."""
    good = [s for s in settings if s.ratio <= limit]
    if not good:
        return ""
    best = max(good, key=lambda s: s.speed)
    return (
        f"Fastest within {100 * (limit - 1):.0f}% of the base's perplexity: {best.name} ({best.group}), "
        f"{best.speed:.1f} ± {best.spread:.1f} tokens/s at {best.ratio:.4f} times its perplexity."
    )


def untold(collection: Collection) -> bool:
    """Whether a plan was timed of which it cannot be told which one it is."""
    return any(
        (_digest(collection, record) or "").startswith(_UNKNOWN)
        for bench in collection.of("bench")
        for record in bench.data["results"]
    )


def _digest(collection: Collection, record: Mapping[str, Any]) -> str | None:
    """SHA-256 of the plan that was timed; None: dense.

    Older files do not say it: then that of the one given plan which lies there, or is called so, else its path
    after `_UNKNOWN`.
    """
    plan = record["plan"]
    if plan == "off" or record.get("plan_sha256"):
        return record.get("plan_sha256")
    given = collection.of("plan")
    exact = [s for s in given if place(s.path) == place(plan)]
    named = exact or [s for s in given if s.path.name == Path(plan).name]
    return str(named[0].data["sha256"]) if len(named) == 1 else f"{_UNKNOWN}{plan}"


def _base_perplexities(collection: Collection) -> dict[tuple[str, int], float]:
    """Of the dense base of the original model, by text and number of tokens."""
    found = {}
    for source in collection.of("eval"):
        if not collection.adapted(source):
            for run in source.data["runs"]:
                for name, entry in run["texts"].items():
                    value = entry["metrics"].get("base_perplexity", {}).get("value")
                    if _is_perplexity(value):
                        found[name, entry["tokens"]] = value
    return found


def _ratio(run: Mapping[str, Any], bases: Mapping[tuple[str, int], float]) -> float | None:
    """Geometric mean over the texts; None where a base is missing."""
    ratios = []
    for name, entry in run["texts"].items():
        base = bases.get((name, entry["tokens"]))
        value = entry["metrics"].get("perplexity", {}).get("value")
        if not base or not _is_perplexity(value):
            return None
        ratios.append(value / base)
    return statistics.geometric_mean(ratios) if ratios else None


def _is_perplexity(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
