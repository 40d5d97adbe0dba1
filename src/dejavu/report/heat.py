"""Heat maps."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from dejavu.report.axes import LEFT, RIGHT, WIDTH, number, svg, text

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOP, _KEY = 30.0, 52.0  # above the cells; below them: column names, label, key


def heat_map(
    title: str,
    values: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    row_label: str,
    column_label: str,
    low: float,
    high: float,
    percent: bool = False,
    description: str = "",
) -> str:
    """An SVG of one cell per value, darker where it is larger; `low` and below are blank, `high` is full.

    `values` is [rows][columns]; cells that are not finite stay blank.
    """
    height = min(16.0, max(5.0, 220 / max(1, len(rows))))
    width = (WIDTH - LEFT - RIGHT) / max(1, len(columns))
    body = []
    for i, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = _TOP + i * height
        for j, value in enumerate(line):
            share = (value - low) / (high - low) if math.isfinite(value) else 0.0
            tip = escape(f"{row_label} {name}, {column_label} {columns[j]}: {number(value, percent=percent)}")
            body.append(
                f'<rect class="cell" x="{LEFT + j * width:.2f}" y="{y:.2f}" width="{width:.2f}" '
                f'height="{height:.2f}" fill-opacity="{min(1, max(0, share)):.3f}"><title>{tip}</title></rect>'
            )
        if i % max(1, math.ceil(14 / height)) == 0:
            body.append(text(LEFT - 6, y + height / 2 + 4, name, anchor="end", css="dim"))
    bottom = _TOP + len(rows) * height
    body.append(
        f'<rect class="frame" x="{LEFT}" y="{_TOP}" width="{WIDTH - LEFT - RIGHT}" height="{bottom - _TOP:.2f}"/>'
    )
    longest = max(map(len, columns), default=1)
    for j, name in enumerate(columns):
        if j % max(1, math.ceil((7 * longest + 8) / width)) == 0:
            body.append(text(LEFT + (j + 0.5) * width, bottom + 15, name, anchor="middle", css="dim"))
    body.append(text(LEFT, bottom + 34, column_label))
    middle = (_TOP + bottom) / 2
    body.append(
        f'<text text-anchor="middle" transform="translate(11 {middle:.1f}) rotate(-90)">{escape(row_label)}</text>'
    )
    body += _key(bottom + 34, number(low, percent=percent), number(high, percent=percent))
    return svg(title, body, description=description, size=(WIDTH, bottom + _KEY))


def _key(y: float, low: str, high: str) -> list[str]:
    """A strip from blank to full with its two ends named, at the right."""
    steps, step = 10, 8.0
    left = WIDTH - RIGHT - steps * step - 40
    parts = [
        f'<rect class="cell" x="{left + i * step:.1f}" y="{y - 10:.1f}" width="{step}" height="10" '
        f'fill-opacity="{i / (steps - 1):.2f}"/>'
        for i in range(steps)
    ]
    parts.append(f'<rect class="frame" x="{left:.1f}" y="{y - 10:.1f}" width="{steps * step}" height="10"/>')
    parts.append(text(left - 5, y, low, anchor="end", css="dim"))
    parts.append(text(left + steps * step + 5, y, high, css="dim"))
    return parts
