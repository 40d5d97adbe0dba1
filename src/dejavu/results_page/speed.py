"""What `dejavu bench` found: speeds, and how near they are to the speed of memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu.report import Axis, Row, Table, row_chart

if TYPE_CHECKING:
    from collections.abc import Mapping

    Record = Mapping[str, Any]

_HEADERS = ("weights", "cache", "threads", "test", "tokens/s", "ms/token", "GB/s", "% of read bandwidth")


def table(document: Mapping[str, Any]) -> Table:
    """A row for each result."""
    rows = [
        [
            _weights(record),
            record["kv_dtype"],
            str(record["threads"]),
            record["test"],
            f"{record['tokens_per_s']:.1f} ± {record['tokens_per_s_spread']:.1f}",
            f"{record['ms_per_token']:.2f}",
            f"{record['bytes_per_s'] / 1e9:.1f}" if record["bytes_per_s"] else "",
            f"{100 * _share(record):.0f}" if _floor(record) else "",
        ]
        for record in document["results"]
    ]
    caption = "Medians ± half the distance between the quartiles. pp: prompt processing, tg: token generation"
    return Table(caption, _HEADERS, rows)


def roofline(document: Mapping[str, Any]) -> str | None:
    """Measured time of a decode step beside what reading its bytes takes at least; None: neither is known."""
    rows = [
        Row(
            f"{_weights(record)}, {record['test']}"
            + ("" if len(_threads(document)) < 2 else f", {record['threads']} threads"),
            record["ms_per_token"],
            part=floor,
            note=f"{record['ms_per_token']:.2f} ms, memory alone {floor:.2f} ms",
            color=0 if record["plan"] == "off" else 1,
        )
        for record in document["results"]
        if (floor := _floor(record))
    ]
    if not rows:
        return None
    title = "Time of a decode step"
    return row_chart(
        title, rows, axis=Axis("ms"), description=f"{title}, and of reading its bytes at full bandwidth"
    )


def bandwidths(document: Mapping[str, Any]) -> str:
    """The read bandwidths that shares refer to, in words; empty if none was measured."""
    found = {
        r["threads"]: r["read_bandwidth_bytes_per_s"]
        for r in document["results"]
        if r["read_bandwidth_bytes_per_s"]
    }
    return ", ".join(
        f"{rate / 1e9:.1f} GB/s with {n} thread{'s' * (n > 1)}" for n, rate in sorted(found.items())
    )


def _weights(record: Record) -> str:
    return (
        str(record["codec"])
        if record["plan"] == "off"
        else f"{record['codec']}, plan {Path(record['plan']).name}"
    )


def _threads(document: Mapping[str, Any]) -> set[int]:
    return {record["threads"] for record in document["results"]}


def _floor(record: Record) -> float | None:
    """Milliseconds that the bytes of a step take at the measured bandwidth."""
    size, rate = record["touched_bytes_per_step"], record["read_bandwidth_bytes_per_s"]
    return 1000 * size / rate if size and rate else None


def _share(record: Record) -> float:
    return (_floor(record) or 0.0) / record["ms_per_token"] if record["ms_per_token"] else 0.0
