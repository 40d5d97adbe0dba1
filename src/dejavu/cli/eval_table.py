"""The results of dejavu eval as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    Figures = Mapping[str, float | None]

_DIGITS = {"perplexity": 2, "base_perplexity": 2, "bleu": 2}
_DIGITS |= dict.fromkeys(("ppl_ratio", "kl_mean", "kl_median", "kl_p99.9"), 4)


def print_results(document: Mapping[str, Any]) -> None:
    """One row per figure; a column per run, and of its paired differences to the first."""
    import sys

    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    runs = document["runs"]
    table = Table(
        title="± standard error", box=SIMPLE, padding=(0, 1, 0, 0), title_justify="left", title_style="dim"
    )
    for header in ("", "figure"):
        table.add_column(header)
    table.add_column("n", justify="right")
    for run in runs:
        table.add_column(run["name"].replace(", ", ",\n"), justify="right", no_wrap=True)
        if "difference" in run:
            table.add_column("difference", justify="right", no_wrap=True)
    first = runs[0]
    for part in ("tasks", "texts"):
        for name, entry in first[part].items():
            count = str(entry["items" if part == "tasks" else "tokens"])
            if not any(run[part][name]["metrics"] for run in runs):
                table.add_row(name, "(nothing scored)", count)
            for metric in dict.fromkeys(metric for run in runs for metric in run[part][name]["metrics"]):
                cells = []
                for run in runs:
                    cells.append(_cell(run[part][name]["metrics"].get(metric), metric))
                    if "difference" in run:
                        cells.append(
                            _cell(run["difference"].get(part, {}).get(name, {}).get(metric), metric, sign="+")
                        )
                table.add_row(name, metric, count, *cells)
        if part == "tasks" and "average" in first:
            cells = []
            for run in runs:
                cells.append(_cell(run["average"], "acc"))
                if "difference" in run:
                    cells.append(_cell(run["difference"]["average"], "acc", sign="+"))
            table.add_row("average", "acc", "", *cells, style="bold")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for name, entry in first["tasks"].items():
        if entry["skipped"]:
            reasons = [f"line {s['line']} {s['reason']}" for s in entry["skipped"][:5]]
            more = ", ..." if len(entry["skipped"]) > 5 else ""
            console.print(f"{name}: {len(entry['skipped'])} items skipped ({', '.join(reasons)}{more})")
    for run in runs:
        check = run.get("spot_check")
        if check:
            console.print(
                f"{run['name']}: {check['items']} items again by decoding: log-likelihoods differ by at most "
                f"{check['max_difference']:.4f} nats, {check['per_token']:.4f} per token ({check['task']}, line "
                f"{check['line']}), {check['changed']} verdicts changed"
            )


def _cell(figures: Figures | None, metric: str, *, sign: str = "") -> str:
    if figures is None or figures["value"] is None:
        return ""
    digits = _DIGITS.get(metric, 3)
    error = "" if figures["stderr"] is None else f" ± {figures['stderr']:.{digits}f}"
    return f"{figures['value']:{sign}.{digits}f}{error}"
