"""What `dejavu eval` found: tasks, texts, and paired differences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dejavu.report import Axis, Interval, Table, interval_chart

if TYPE_CHECKING:
    from collections.abc import Mapping

    Document = Mapping[str, Any]
    Estimate = Mapping[str, float | None]

_TWO_DIGITS = frozenset({"perplexity", "bleu"})
_TEXT_FIGURES = {
    "perplexity": ("perplexity", 2),
    "ppl_ratio": ("ratio to base", 4),
    "kl_mean": ("KL mean", 4),
    "kl_median": ("KL median", 4),
    "kl_p99.9": ("KL 99.9%", 3),
    "same_top1": ("same top-1", 3),
}


def task_table(document: Document, *, every: bool = False) -> Table:
    """The first metric of each task (`every`: all), run by run, with the differences to the first run."""
    runs = document["runs"]
    compared = [run for run in runs if "difference" in run]
    rows = []
    for name, entry in runs[0]["tasks"].items():
        for metric in list(entry["metrics"])[: None if every else 1]:
            digits = 2 if metric in _TWO_DIGITS else 3
            cells = [_cell(_metrics(run, name).get(metric), digits) for run in runs]
            cells += [_cell(_metrics(run["difference"], name).get(metric), digits, "+") for run in compared]
            rows.append([name, metric, f"{entry['items']:,}", *cells])
    if "average" in runs[0] and not every:
        cells = [_cell(run.get("average"), 3) for run in runs]
        cells += [_cell(run["difference"].get("average"), 3, "+") for run in compared]
        rows.append(["average", "acc", "", *cells])
    headers = ["task", "metric", "items", *(run["name"] for run in runs)]
    headers += [f"{run['name']} - {runs[0]['name']}" for run in compared]
    return Table("Values ± standard error; differences are of paired items", headers, rows)


def skipped(document: Document) -> list[str]:
    """A sentence for each task of which items were left out."""
    found = []
    for name, entry in document["runs"][0]["tasks"].items():
        if entry["skipped"]:
            reasons = dict.fromkeys(str(item.get("reason")) for item in entry["skipped"])
            found.append(f"{name}: {len(entry['skipped'])} items were skipped ({', '.join(reasons)}).")
    return found


def difference_charts(document: Document) -> list[tuple[str, str]]:
    """Of each run that is compared with the first, its accuracies less the first run's."""
    runs, charts = document["runs"], []
    for run in runs:
        if "difference" not in run:
            continue
        found = [(name, metrics.get("acc")) for name, metrics in run["difference"]["tasks"].items()]
        found.append(("average", run["difference"].get("average")))
        intervals = [
            Interval(
                name, estimate["value"], 2 * (estimate["stderr"] or 0.0), color=3 if name == "average" else 0
            )
            for name, estimate in found
            if estimate and estimate["value"] is not None
        ]
        if intervals:
            axis = Axis(f"accuracy less that of {runs[0]['name']}", percent=True)
            chart = interval_chart(
                run["name"],
                intervals,
                axis=axis,
                description=f"Accuracy of {run['name']} less {runs[0]['name']}",
            )
            charts.append(
                (chart, "Paired differences, ± two standard errors; right of the dotted line is better.")
            )
    return charts


def text_table(document: Document) -> Table:
    """Perplexity and divergence of every run on every text."""
    rows = []
    for run in document["runs"]:
        for name, entry in run["texts"].items():
            cells = [_cell(entry["metrics"].get(key), digits) for key, (_, digits) in _TEXT_FIGURES.items()]
            rows.append([f"{run['name']}: {name}", f"{entry['tokens']:,}", entry["base"] or "", *cells])
    headers = ["run and text", "tokens", "base", *(label for label, _ in _TEXT_FIGURES.values())]
    return Table("± standard error; KL(base || run) in nats per token", headers, rows)


def _metrics(run: Mapping[str, Any], task: str) -> Mapping[str, Estimate]:
    entry = run["tasks"].get(task, {})
    found: Mapping[str, Estimate] = entry.get("metrics", entry)
    return found


def _cell(estimate: Estimate | None, digits: int, sign: str = "") -> str:
    if not estimate or estimate["value"] is None:
        return ""
    error = "" if estimate["stderr"] is None else f" ± {estimate['stderr']:.{digits}f}"
    return f"{estimate['value']:{sign}.{digits}f}{error}"
