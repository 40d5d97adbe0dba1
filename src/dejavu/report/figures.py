"""Figures that several pages show, as SVG files: the frontier, and what looking ahead costs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dejavu.report.axes import WIDTH, Axis, svg
from dejavu.report.lines import Series, line_chart
from dejavu.report.page import standalone_svg
from dejavu.report.scatter import Group, Point, scatter_chart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDE = (680.0, 420.0)


def frontier(
    groups: Mapping[str, Sequence[tuple[str, float, float]]], *, title: str = "Speed against quality"
) -> str:
    """What can be had of speed and quality at once.

    Args:
        groups: by the name in the legend, (label, tokens/s, ppl ratio) of each setting.
        title: drawn on top.

    Returns:
        A standalone SVG: ppl ratio against tokens/s, joined where nothing is both faster and better.
    """
    made = [
        Group(name, [Point(speed, ratio, label) for label, speed, ratio in points])
        for name, points in groups.items()
    ]
    x, y = Axis("tokens/s"), Axis("perplexity ratio to the base model", log=True)
    return standalone_svg(scatter_chart(title, made, x=x, y=y, pareto=("high", "low"), size=_WIDE))


def look_ahead_ablation(curves: Mapping[str, Sequence[tuple[int, float, float]]]) -> str:
    """What predicting from an earlier layer costs.

    Args:
        curves: by the name of the predictor, (distance in layers, recall, ppl ratio) of each run.

    Returns:
        A standalone SVG of two charts: recall, and ppl ratio, against distance.
    """
    distance = Axis("look-ahead distance (layers)", whole=True)
    recall = [Series(name, [p[0] for p in runs], [p[1] for p in runs]) for name, runs in curves.items()]
    ratio = [Series(name, [p[0] for p in runs], [p[2] for p in runs]) for name, runs in curves.items()]
    charts = [
        line_chart("Recall", recall, x=distance, y=Axis("recall", percent=True, high=1)),
        line_chart("Perplexity", ratio, x=distance, y=Axis("perplexity ratio", log=True)),
    ]
    return standalone_svg(side_by_side(charts, "Recall and perplexity ratio against look-ahead distance"))


def side_by_side(charts: Sequence[str], description: str) -> str:
    """Charts in a row, as one SVG."""
    parts, height = [], 0.0
    for i, chart in enumerate(charts):
        size = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', chart)
        height = max(height, float(size[1]) if size else 0.0)
        body = chart[chart.index(">") + 1 : chart.rindex("</svg>")]
        parts.append(f'<g transform="translate({i * WIDTH:g} 0)">{body}</g>')
    return svg("", parts, description=description, size=(len(charts) * WIDTH, height))
