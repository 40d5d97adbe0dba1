"""Measured time beside bytes / bandwidth: of whole decode steps, and of their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dejavu.report import Axis, Row, Table, row_chart
from dejavu.results_page.speed import floor_ms, setting_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Record = Mapping[str, Any]

_MS = Axis("ms")


def step_chart(records: Sequence[Record]) -> str | None:
    """A bar for each test that generates; None: bytes or bandwidth are not known of any."""
    rows = [
        _row(setting_name(record), record["ms_per_token"], floor, color=0 if record["plan"] == "off" else 1)
        for record in records
        if (floor := floor_ms(record)) is not None
    ]
    if not rows:
        return None
    title = "Time of a decode step"
    return row_chart(
        title, rows, axis=_MS, description=f"{title}, and of reading its bytes at full bandwidth"
    )


def part_charts(records: Sequence[Record]) -> list[str]:
    """A chart for each setting that decodes one sequence from the shortest cache measured, all to one scale."""
    chosen: dict[tuple[str, str, int], Record] = {}
    for record in records:
        if record.get("parts") and record["batch"] == 1:
            key = (record["codec"], record["plan"], record["threads"])
            if key not in chosen or record["depth"] < chosen[key]["depth"]:
                chosen[key] = record
    if not chosen:
        return []
    axis = Axis("ms", high=max(part["ms"] for record in chosen.values() for part in record["parts"].values()))
    charts = []
    for record in chosen.values():
        rows = [
            _row(name, part["ms"], part["bandwidth_ms"], color=0 if record["plan"] == "off" else 1)
            for name, part in record["parts"].items()
            if part["ms"]
        ]
        charts.append(
            row_chart(setting_name(record), rows, axis=axis, description="Time of the parts of a decode step")
        )
    return charts


def part_table(records: Sequence[Record]) -> Table:
    """The parts of every test that generates: milliseconds of a step, and at the measured bandwidth."""
    known = [record for record in records if record.get("parts")]
    names = dict.fromkeys(name for record in known for name in record["parts"])
    rows = [[setting_name(record), *(_cell(record["parts"].get(name)) for name in names)] for record in known]
    return Table(
        "Milliseconds of a step; in brackets those of reading the bytes at full bandwidth", ["", *names], rows
    )


def _row(label: str, ms: float, floor: float | None, *, color: int) -> Row:
    note = f"{ms:.3g} ms (memory {floor:.3g})" if floor else f"{ms:.3g} ms"
    return Row(label, ms, part=floor or 0.0, note=note, color=color)


def _cell(part: Record | None) -> str:
    if part is None:
        return ""
    return f"{part['ms']:.3f}" + ("" if part["bandwidth_ms"] is None else f" ({part['bandwidth_ms']:.3f})")
