"""Axes of a chart: from values to pixels, where the ticks are and how they read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDTH, HEIGHT = 440.0, 300.0
"""Of a chart, in SVG units; it is stretched to the width of its place."""
Size = tuple[float, float]
"""Width and height."""
LEFT, RIGHT, BOTTOM = 52.0, 22.0, 46.0
"""Margins around the plotting area."""
_LETTER = 6.4  # mean width of a letter at 12 px
_TINY = 1e-100  # nothing on a log axis is smaller


@dataclass(frozen=True)
class Axis:
    """One axis. `low` and `high` are taken from the data where they are None."""

    label: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    percent: bool = False
    """Values are shares; show them as percentages."""
    whole: bool = False
    """Values are whole numbers: no ticks between them."""
    ticks: tuple[float, ...] = ()
    """Where to put ticks; empty: at round numbers."""


@dataclass(frozen=True)
class Scale:
    """An axis with its range, laid over pixels `start` to `stop` (start > stop for an upward axis)."""

    axis: Axis
    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The pixel of `value`; values beyond the range stick to its ends."""
        value = min(max(value, self.low), self.high)
        if self.axis.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 2)

    def ticks(self) -> list[float]:
        """Where the axis is marked."""
        if self.axis.ticks:
            return [tick for tick in self.axis.ticks if self.low <= tick <= self.high]
        if self.axis.log:
            return _log_ticks(self.low, self.high)
        return _linear_ticks(self.low, self.high, 1.0 if self.axis.whole else 0.0)

    def text(self, value: float) -> str:
        """How a tick at `value` reads."""
        return number(value, percent=self.axis.percent)


def fit(axis: Axis, values: Iterable[float], start: float, stop: float) -> Scale:
    """The scale of `axis` for `values`; those that are not finite (or not positive on a log axis) are ignored."""
    known = [v for v in values if math.isfinite(v) and (v > _TINY or not axis.log)] or [1.0]
    low = min(known) if axis.low is None else axis.low
    high = max(known) if axis.high is None else axis.high
    if axis.log:
        low = max(low, 1e-12 * high)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):  # one value only: any range around it will do
        low, high = (low / 2, low * 2) if axis.log else (low - max(0.5, abs(low)), low + max(0.5, abs(low)))
    return Scale(axis, low, high, start, stop)


def number(value: float, *, percent: bool = False) -> str:
    """A short decimal: three significant digits, no exponent between 0.001 and a million."""
    if percent:
        return f"{100 * value:.3g}%"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def frame(x: Scale, y: Scale, top: float, size: Size = (WIDTH, HEIGHT)) -> list[str]:
    """Grid, ticks and labels of a chart whose plotting area begins at `top`."""
    bottom, left, right = size[1] - BOTTOM, LEFT, size[0] - RIGHT
    parts = []
    for tick in y.ticks():
        at = y(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{at}" y2="{at}"/>')
        parts.append(text(left - 6, at + 4, y.text(tick), anchor="end", css="dim"))
    for tick in x.ticks():
        at = x(tick)
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(text(at, bottom + 17, x.text(tick), anchor="middle", css="dim"))
    parts.append(text((left + right) / 2, size[1] - 8, x.axis.label, anchor="middle"))
    middle = (top + bottom) / 2
    parts.append(
        f'<text text-anchor="middle" transform="translate(11 {middle:.1f}) rotate(-90)">'
        f"{escape(y.axis.label)}</text>"
    )
    return parts


def text(x: float, y: float, content: str, *, anchor: str = "start", css: str = "") -> str:
    """A line of text."""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def legend(
    labels: Sequence[tuple[str, int, bool]], top: float, width: float = WIDTH
) -> tuple[list[str], float]:
    """Entries (label, colour, dashed) in rows from `top` downward; also where the last row ends."""
    parts: list[str] = []
    x, y = LEFT, top
    for label, color, dashed in labels:
        needed = 26 + text_width(label) + 12
        if x > LEFT and x + needed > width:
            x, y = LEFT, y + 16
        style = "line dashed" if dashed else "line"
        parts.append(
            f'<line class="{style} s{color}" x1="{x:.1f}" x2="{x + 20:.1f}" y1="{y - 4:.1f}" y2="{y - 4:.1f}"/>'
        )
        parts.append(text(x + 25, y, label))
        x += needed
    return parts, y + 10 if labels else top


def text_width(content: str) -> float:
    """About how wide a line of text is drawn."""
    return _LETTER * len(content)


def shortened(content: str, width: float) -> str:
    """As much of a line of text as is drawn within `width`."""
    letters = int(width / _LETTER)
    return content if len(content) <= letters else f"{content[: max(0, letters - 1)]}…"


def svg(
    title: str,
    body: Iterable[str],
    *,
    description: str = "",
    size: Size = (WIDTH, HEIGHT),
    left: float = LEFT,
) -> str:
    """The element around a chart; `title` is drawn at `left`, `description` is for screen readers."""
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:g} {size[1]:g}" role="img" '
        f'aria-label="{escape(description or title)}">'
        f"{text(left, 16, title, css='title')}{''.join(body)}</svg>"
    )


def _linear_ticks(low: float, high: float, finest: float) -> list[float]:
    """About five multiples of 1, 2 or 5 times a power of ten, and of at least `finest`."""
    rough = max((high - low) / 5, finest)
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten; powers alone over many decades; finer where the range is narrow."""
    decades = math.log10(high / low)
    digits: tuple[float, ...] = (1, 2, 5) if decades <= 4 else (1,)
    if decades < 0.7:
        digits = (1, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6, 8)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [round(d * 10.0**p, 12) for p in powers for d in digits]
    return [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
