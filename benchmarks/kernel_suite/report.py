"""The table and the JSON of the kernel benchmarks."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernel_suite.compare import Row


def table(rows: Sequence[Row], title: str, against: str | None) -> Table:
    """One line per case."""
    out = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    out.add_column("case", overflow="fold")
    for name in ("per call", "per row", "speed", "% of reading"):
        out.add_column(name, justify="right")
    if against:
        out.add_column(f"time / {against}", justify="right")
        out.add_column("quartiles", justify="right")
        out.add_column("")
    for row in rows:
        values = record(row)
        share = values["bandwidth_share"]
        cells = [
            row.case,
            _time(row.seconds),
            _time(row.seconds / row.rows) if row.rows > 1 else "",
            f"{row.flops / row.seconds / 1e9:.1f} GFLOP/s"
            if row.flops
            else f"{row.bytes / row.seconds / 1e9:.1f} GB/s",
            "" if share is None else f"{share:.0%}",
        ]
        if against:
            cells += _ratio_cells(row)
        out.add_row(*cells)
    return out


def _ratio_cells(row: Row) -> list[str]:
    if row.ratio is None:
        return ["not comparable", "", ""]
    low, middle, high = row.ratio
    verdict = ("[green]faster" if middle < 1 else "[red]slower") if row.beyond_noise else ""
    return [f"{middle:.3f}", f"{low:.3f} {high:.3f}", verdict]


def record(row: Row) -> dict[str, Any]:
    """A case for JSON: raw samples and what the table says of them."""
    bandwidth = statistics.median(row.bandwidth) if row.bandwidth else None
    ratio = row.ratio
    return {
        "case": row.case,
        "rows": row.rows,
        "bytes": row.bytes,
        "flops": row.flops,
        "threads": row.threads,
        "calls_per_sample": row.calls,
        "seconds": row.seconds,
        "ns_per_row": 1e9 * row.seconds / row.rows,
        "GB_s": row.bytes / row.seconds / 1e9,
        "read_bandwidth": bandwidth,
        "bandwidth_share": None if bandwidth is None else row.bytes / row.seconds / bandwidth,
        "ratio": None
        if ratio is None
        else {"lower_quartile": ratio[0], "median": ratio[1], "upper_quartile": ratio[2]},
        "beyond_noise": row.beyond_noise,
        "samples": {"new": row.new, "old": row.old},
    }


def _time(seconds: float) -> str:
    for unit, name in ((1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.2f} {name}"
    return f"{seconds * 1e9:.1f} ns"
