"""Bars that lie, one below the other, under their names: long names stay readable on a phone."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from dejavu.report.axes import WIDTH, Axis, fit, number, shortened, svg, text, text_width

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOP, _STEP, _BAR = 40.0, 40.0, 14.0


@dataclass(frozen=True)
class Row:
    """A bar."""

    label: str
    value: float
    part: float | None = None
    """What of it is drawn full, from the left; the rest is faint. None: all."""
    note: str = ""
    """Stands to the right, above the bar."""
    color: int = 0


def row_chart(title: str, rows: Sequence[Row], *, axis: Axis, description: str = "") -> str:
    """An SVG of bars from 0 to their values, all to the same scale; values are not negative."""
    across = fit(axis, [0.0, *(row.value for row in rows)], 0.0, WIDTH)
    body = []
    for i, row in enumerate(rows):
        y = _TOP + i * _STEP
        end = across(row.value)
        full = end if row.part is None else across(min(row.part, row.value))
        note = row.note or number(row.value, percent=axis.percent)
        body.append(text(0, y + 8, shortened(row.label, WIDTH - text_width(note) - 12)))
        body.append(text(WIDTH, y + 8, note, anchor="end", css="dim"))
        tip = f"<title>{escape(f'{row.label}: {note}')}</title>"
        for width, css in ((end, f"f{row.color} faint"), (full, f"f{row.color}")):
            body.append(
                f'<rect class="{css}" x="0" y="{y + 13:g}" width="{width:.2f}" height="{_BAR:g}">{tip}</rect>'
            )
    height = _TOP + len(rows) * _STEP
    return svg(title, body, description=description, size=(WIDTH, height), left=0.0)
