"""Bar charts."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from dejavu.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Axis, fit, frame, number, svg, text

if TYPE_CHECKING:
    from collections.abc import Sequence


def bar_chart(
    title: str,
    names: Sequence[str],
    values: Sequence[float],
    *,
    x_label: str,
    y: Axis,
    dots: Sequence[float | None] = (),
    description: str = "",
) -> str:
    """An SVG of one upright bar per name, and perhaps a dot over it; names are thinned out where they would collide."""
    top = 30.0
    across = fit(Axis(x_label, ticks=(-1.0,)), [0, len(names)], LEFT, WIDTH - RIGHT)
    upward = fit(y, [0.0, *values, *(dot for dot in dots if dot is not None)], HEIGHT - BOTTOM, top)
    body = frame(across, upward, top)
    step = (WIDTH - RIGHT - LEFT) / max(1, len(names))
    every = max(1, -(-int(8 * max(map(len, names), default=1) + 4) // max(1, int(step))))
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        left, at = LEFT + step * i, upward(value)
        body.append(
            f'<rect class="f0" x="{left + 0.1 * step:.2f}" y="{at:g}" width="{0.8 * step:.2f}" '
            f'height="{upward.start - at:.2f}"><title>{escape(name)}: '
            f"{number(value, percent=y.percent)}</title></rect>"
        )
        if i % every == 0:
            body.append(text(left + step / 2, HEIGHT - BOTTOM + 17, name, anchor="middle", css="dim"))
    for i, dot in enumerate(dots):
        if dot is not None:
            tip = f"<title>{escape(names[i])}: {number(dot, percent=y.percent)}</title>"
            body.append(
                f'<circle class="f1" cx="{LEFT + step * (i + 0.5):.2f}" cy="{upward(dot):g}" r="3">{tip}</circle>'
            )
    return svg(title, body, description=description)
