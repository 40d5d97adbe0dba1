"""The results of dejavu eval as text."""

from __future__ import annotations

from typing import Any


def print_results(document: dict[str, Any]) -> None:
    """One row per figure, one column per run."""
    from rich.console import Console
    from rich.table import Table

    runs = document["runs"]
    table = Table(title="± standard error", title_justify="left", title_style="dim")
    for header in ("", "figure", "of"):
        table.add_column(header)
    for run in runs:
        table.add_column(run["name"], justify="right")
    first = runs[0]
    for name, entry in first["tasks"].items():
        for metric in entry["metrics"]:
            cells = [run["tasks"][name]["metrics"][metric] for run in runs]
            table.add_row(name, metric, f"{entry['items']} items", *(_cell(c, metric) for c in cells))
    if "average" in first:
        table.add_row("average", "acc", "", *(_cell(run["average"], "acc") for run in runs), style="bold")
    for name, entry in first["texts"].items():
        metrics = dict.fromkeys(metric for run in runs for metric in run["texts"][name]["metrics"])
        for metric in metrics:
            cells = [run["texts"][name]["metrics"].get(metric) for run in runs]
            table.add_row(name, metric, f"{entry['tokens']} tokens", *(_cell(c, metric) for c in cells))
    console = Console(highlight=False)
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
                f"{run['name']}: {check['items']} items again by decoding: log-likelihoods differ by at "
                f"most {check['max_difference']:.4f} ({check['task']}, line {check['line']}), {check['changed']} verdicts "
                "changed"
            )


def _cell(figures: dict[str, float | None] | None, metric: str) -> str:
    if figures is None or figures["value"] is None:
        return ""
    digits = (
        2
        if metric in ("perplexity", "base_perplexity", "bleu")
        else 4
        if "kl" in metric or "ratio" in metric
        else 3
    )
    error = "" if figures["stderr"] is None else f" ± {figures['stderr']:.{digits}f}"
    return f"{figures['value']:.{digits}f}{error}"
