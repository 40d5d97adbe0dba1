"""Scatter charts with a Pareto line: what can be had of two things at once."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from dejavu.report.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Axis,
    Size,
    fit,
    frame,
    legend,
    number,
    svg,
    text,
    text_width,
)
from dejavu.report.style import COLORS

if TYPE_CHECKING:
    from collections.abc import Sequence

Better = Literal["low", "high"]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """A point with the name that stands beside it (empty: none)."""

    x: float
    y: float
    label: str = ""


@dataclass(frozen=True)
class Group:
    """Points of one colour."""

    label: str
    points: Sequence[Point]


def scatter_chart(
    title: str,
    groups: Sequence[Group],
    *,
    x: Axis,
    y: Axis,
    pareto: tuple[Better, Better] | None = None,
    description: str = "",
    size: Size = (WIDTH, HEIGHT),
) -> str:
    """An SVG of named points; names are put where they cover least.

    Args:
        title: drawn on top.
        groups: the points, in the order of the legend; one without points keeps its place among the colours.
        x: the axis to the right.
        y: the axis upward.
        pareto: which end of x and of y is better: joins the points that no other point beats in both.
        description: what screen readers say; default: the title.
        size: more room for many points.
    """
    width, height = size
    points = [point for group in groups for point in group.points]
    shown = [(group, i % COLORS) for i, group in enumerate(groups) if group.points]
    body, top = legend([(group.label, color, False) for group, color in shown], 36, width)
    across = fit(x, [p.x for p in points], LEFT + 8, width - RIGHT - 8)
    upward = fit(y, [p.y for p in points], height - BOTTOM - 8, top + 8)
    body += frame(across, upward, top, size)
    if pareto is not None:
        best = pareto_points(points, pareto)
        path = " ".join(f"{across(p.x):g},{upward(p.y):g}" for p in best)
        body.append(f'<polyline class="line front" points="{path}"/>')
    area = (LEFT, top, width, height - BOTTOM)
    taken: list[Box] = [_around(across(p.x), upward(p.y)) for p in points]
    for group, color in shown:
        for point in group.points:
            cx, cy = across(point.x), upward(point.y)
            tip = escape(
                f"{point.label or group.label}: {number(point.x, percent=x.percent)}, "
                f"{number(point.y, percent=y.percent)}"
            )
            body.append(
                f'<circle class="f{color}" cx="{cx:g}" cy="{cy:g}" r="4"><title>{tip}</title></circle>'
            )
            if point.label:
                left, baseline = _place(cx, cy, point.label, taken, area)
                body.append(text(left, baseline, point.label, css=f"f{color}"))
    return svg(title, body, description=description, size=size)


def pareto_points(points: Sequence[Point], better: tuple[Better, Better]) -> list[Point]:
    """Those points that no other beats in one thing and equals in the other, by rising x."""
    sign_x, sign_y = (1 if end == "high" else -1 for end in better)
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (sign_x * p.x, sign_y * p.y), reverse=True):
        if not best or sign_y * point.y > sign_y * best[-1].y:
            best.append(point)
    return sorted(best, key=lambda p: p.x)


def _around(x: float, y: float) -> Box:
    return x - 4, y - 4, x + 4, y + 4


def _place(x: float, y: float, label: str, taken: list[Box], area: Box) -> tuple[float, float]:
    """Left end and baseline of a label beside (x, y), inside `area`, covering as little as it can; remembers it."""
    width = text_width(label)
    offsets = [
        (7, 4),
        (-7 - width, 4),
        (-width / 2, -8),
        (-width / 2, 17),
        (6, -7),
        (6, 16),
        (-6 - width, -7),
    ]
    offsets += [(-6 - width, 16), (9, -19), (9, 28), (-9 - width, -19), (-9 - width, 28)]

    def cost(offset: tuple[float, float]) -> float:
        box = _label_box(x + offset[0], y + offset[1], width)
        outside = sum(max(0, area[i] - box[i]) + max(0, box[i + 2] - area[i + 2]) for i in (0, 1))
        return 20 * outside + sum(_common(box, other) for other in taken)

    left, baseline = min(offsets, key=cost)
    taken.append(_label_box(x + left, y + baseline, width))
    return x + left, y + baseline


def _label_box(left: float, baseline: float, width: float) -> Box:
    return left, baseline - 10, left + width, baseline + 3


def _common(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
