"""Values with their intervals, one below the other, beside a line that means no difference."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from dejavu.report.axes import WIDTH, Axis, fit, number, shortened, svg, text

if TYPE_CHECKING:
    from collections.abc import Sequence

_TOP, _STEP, _NAMES, _RIGHT, _BELOW = 38.0, 22.0, 118.0, 16.0, 44.0


@dataclass(frozen=True)
class Interval:
    """A value and how far it may be off on either side."""

    label: str
    value: float
    half: float
    color: int = 0


def interval_chart(
    title: str, intervals: Sequence[Interval], *, axis: Axis, mark: float = 0.0, description: str = ""
) -> str:
    """An SVG of dots with whiskers over a common axis; `mark` is where the dotted line stands."""
    ends = [i.value + sign * i.half for i in intervals for sign in (-1, 1)]
    across = fit(axis, [mark, *ends], _NAMES, WIDTH - _RIGHT)
    bottom = _TOP + len(intervals) * _STEP
    body = []
    for tick in across.ticks():
        at = across(tick)
        body.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{_TOP - 8}" y2="{bottom}"/>')
        body.append(text(at, bottom + 16, across.text(tick), anchor="middle", css="dim"))
    at = across(mark)
    body.append(f'<line class="mark" x1="{at}" x2="{at}" y1="{_TOP - 8}" y2="{bottom}"/>')
    for number_, interval in enumerate(intervals):
        y = _TOP + number_ * _STEP + 4
        low, high = across(interval.value - interval.half), across(interval.value + interval.half)
        shown = [number(v, percent=axis.percent) for v in (interval.value, interval.half)]
        tip = f"<title>{escape(f'{interval.label}: {shown[0]} ± {shown[1]}')}</title>"
        body.append(text(_NAMES - 8, y + 4, shortened(interval.label, _NAMES - 8), anchor="end"))
        body.append(
            f'<line class="line s{interval.color}" x1="{low}" x2="{high}" y1="{y}" y2="{y}">{tip}</line>'
        )
        body.append(
            f'<circle class="f{interval.color}" cx="{across(interval.value)}" cy="{y}" r="4">{tip}</circle>'
        )
    body.append(text((_NAMES + WIDTH - _RIGHT) / 2, bottom + 36, axis.label, anchor="middle"))
    return svg(title, body, description=description, size=(WIDTH, bottom + _BELOW), left=0.0)
