"""Drawing results: SVG charts and self-contained HTML pages, in plain strings, light and dark."""

from __future__ import annotations

from dejavu.report.axes import Axis
from dejavu.report.bars import bar_chart
from dejavu.report.figures import frontier, look_ahead_ablation, side_by_side
from dejavu.report.heat import heat_map
from dejavu.report.intervals import Interval, interval_chart
from dejavu.report.lines import Series, line_chart
from dejavu.report.page import Page, Table, standalone_svg
from dejavu.report.rows import Row, row_chart
from dejavu.report.scatter import Group, Point, scatter_chart

__all__ = [
    "Axis",
    "Group",
    "Interval",
    "Page",
    "Point",
    "Row",
    "Series",
    "Table",
    "bar_chart",
    "frontier",
    "heat_map",
    "interval_chart",
    "line_chart",
    "look_ahead_ablation",
    "row_chart",
    "scatter_chart",
    "side_by_side",
    "standalone_svg",
]
