"""Line charts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from dejavu.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Axis, fit, frame, legend, number, svg
from dejavu.report.style import COLORS

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_MARKERS = 16  # of one line; more would hide it


@dataclass(frozen=True)
class Series:
    """One line through (x, y); points that are not finite are left out."""

    label: str
    """Empty: not in the legend."""
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    """For what is compared with: chance, a floor, a ceiling."""
    color: int | None = None
    """Number of its colour; None: by its place in the chart."""


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    mark: float | None = None,
    description: str = "",
) -> str:
    """An SVG of lines over common axes.

    Args:
        title: drawn on top.
        series: the lines, in the order of the legend.
        x: the axis to the right.
        y: the axis upward.
        mark: a value of y to draw a dotted line at.
        description: what screen readers say; default: the title.
    """
    colors = [(i if s.color is None else s.color) % COLORS for i, s in enumerate(series)]
    entries = [(s.label, color, s.dashed) for s, color in zip(series, colors, strict=True) if s.label]
    body, top = legend(entries if len(series) > 1 else [], 36)
    across = fit(x, [v for s in series for v in s.x], LEFT, WIDTH - RIGHT)
    upward = fit(y, [v for s in series for v in s.y], HEIGHT - BOTTOM, top)
    body += frame(across, upward, top)
    if mark is not None and upward.low <= mark <= upward.high:
        at = upward(mark)
        body.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
    for line, color in zip(series, colors, strict=True):
        known = [
            (a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(b) and (b > 0 or not y.log)
        ]
        dashed = " dashed" if line.dashed else ""
        points = " ".join(f"{across(a):g},{upward(b):g}" for a, b in known)
        body.append(f'<polyline class="line s{color}{dashed}" points="{points}"/>')
        if len(known) > _MOST_MARKERS:
            continue
        for a, b in known:
            tip = escape(f"{line.label}: {number(b, percent=y.percent)} at {number(a, percent=x.percent)}")
            body.append(
                f'<circle class="f{color}" cx="{across(a):g}" cy="{upward(b):g}" r="3"><title>{tip}</title></circle>'
            )
    return svg(title, body, description=description)
