"""Charts and pages: well-formed, self-contained, and saying what they were given."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu.report import (
    Axis,
    Group,
    Page,
    Point,
    Series,
    Table,
    bar_chart,
    frontier,
    heat_map,
    line_chart,
    look_ahead_ablation,
    scatter_chart,
    standalone_svg,
)
from dejavu.report.axes import fit, number
from dejavu.report.scatter import pareto_points

VOID = {"meta", "link", "br", "hr", "img", "input"}
NASTY = "<script>&\"'</title>"


class Checker(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_html(html: str) -> Checker:
    """Well-formed, and nothing in it is fetched or run."""
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open
    assert not {"script", "link", "img", "iframe"} & set(checker.seen)
    assert not re.search(r"(src|href)=|url\(|@import", html)
    return checker


def charts(name: str = "line") -> dict[str, str]:
    density = Axis("density", percent=True, log=True)
    ratio = Axis("ppl ratio", log=True)
    series = [
        Series(name, [0.1, 0.5, 1], [4.0, 1.1, 1]),
        Series("chance", [0.1, 1], [math.inf, 2], dashed=True),
    ]
    groups = [
        Group(name, [Point(100, 1.0, "int8"), Point(140, 1.1, "int4")]),
        Group("theirs", [Point(90, 1.0)]),
    ]
    return {
        "line": line_chart(name, series, x=density, y=ratio, mark=1.5),
        "bar": bar_chart(name, [name, "b"], [0.2, 0.9], x_label="layer", y=Axis("zeros", percent=True)),
        "heat": heat_map(
            name,
            [[0.0, math.nan], [0.5, 1.0]],
            rows=["0", name],
            columns=["a", "b"],
            row_label="layer",
            column_label="head",
            low=0,
            high=1,
        ),
        "scatter": scatter_chart(name, groups, x=Axis("tokens/s"), y=ratio, pareto=("high", "low")),
    }


@pytest.mark.parametrize("kind", ["line", "bar", "heat", "scatter"])
def test_charts_are_xml_and_escape_names(kind: str) -> None:
    root = ET.fromstring(standalone_svg(charts(NASTY)[kind]))
    assert root.get("aria-label") == NASTY
    texts = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text")]
    assert NASTY in texts
    for element in root.iter():
        for value in element.attrib.values():
            assert "nan" not in value
            assert "inf" not in value


def test_line_charts_join_the_finite_points_only() -> None:
    root = ET.fromstring(charts()["line"])
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert [len(line.get("points", "").split()) for line in lines] == [3, 1]
    assert "dashed" in lines[1].get("class", "")


@given(
    x=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=6),
    low=st.floats(-1e6, 1e6),
    log=st.booleans(),
)
def test_scales_stay_in_their_place(x: list[float], low: float, log: bool) -> None:
    scale = fit(Axis("x", log=log), x, 50, 400)
    ticks = scale.ticks()
    assert len(ticks) < 40
    for value in [*ticks, *x, low]:
        if value > 0 or not log:
            assert 50 <= scale(value) <= 400
    assert scale(scale.low) == 50
    assert scale(scale.high) == 400


def test_numbers_are_short() -> None:
    assert [number(v) for v in (0, 1, 1.0234, 123.4, 12345, 2e7, 0.0001)] == [
        "0", "1", "1.02", "123", "12345", "2e7", "1e-4",
    ]  # fmt: skip
    assert number(0.125, percent=True) == "12.5%"


def test_pareto_points_are_those_that_nothing_beats() -> None:
    points = [
        Point(90, 1.0),
        Point(100, 1.0),
        Point(120, 1.2),
        Point(110, 1.1),
        Point(105, 1.15),
        Point(120, 1.3),
    ]
    best = pareto_points(points, ("high", "low"))
    assert [(p.x, p.y) for p in best] == [(100, 1.0), (110, 1.1), (120, 1.2)]
    assert [(p.x, p.y) for p in pareto_points(points, ("low", "low"))] == [(90, 1.0)]


def test_groups_keep_their_colours_where_others_have_no_points() -> None:
    def chart(second: list[Point]) -> str:
        groups = [Group("first", [Point(1, 1)]), Group("second", second), Group("third", [Point(2, 2)])]
        return scatter_chart("colours", groups, x=Axis("x"), y=Axis("y"))

    assert 'class="f2"' in chart([])
    assert 'class="f1"' not in chart([])
    assert ">second<" not in chart([])
    assert 'class="f1"' in chart([Point(3, 3)])


def test_labels_of_a_scatter_do_not_cover_each_other() -> None:
    crowd = [Point(100 + i % 3, 1 + 0.05 * i, f"point {i}") for i in range(6)]
    chart = scatter_chart(
        "crowd", [Group("all", crowd), Group("far", [Point(200, 2)])], x=Axis("x"), y=Axis("y")
    )
    spots = re.findall(r'<text class="f0" x="([\d.]+)" y="([\d.]+)"', chart)
    assert len(spots) == len(set(spots)) == 6
    boxes = [(float(x), float(y)) for x, y in spots]
    width = 6.4 * len("point 0")
    for i, (x, y) in enumerate(boxes):
        for other_x, other_y in boxes[:i]:
            assert abs(x - other_x) > 0.6 * width or abs(y - other_y) > 8


def test_a_page_is_one_file() -> None:
    page = Page(NASTY)
    page.verdict(["It is so.", NASTY])
    page.facts({"model": NASTY})
    page.heading("Quality")
    page.paragraph(NASTY)
    page.charts([(chart, NASTY) for chart in charts(NASTY).values()])
    page.table(Table(NASTY, ["a", NASTY], [["x", NASTY]]), folded="Numbers")
    checker = check_html(page.html())
    assert checker.seen.count("svg") == 4
    assert {"figure", "figcaption", "caption", "details"} <= set(checker.seen)
    assert "prefers-color-scheme:dark" in page.html()


def test_figures_are_svg_files() -> None:
    figure = frontier(
        {"ours": [("sketch 3", 120.0, 1.03), ("int8", 90.0, 1.004)], "theirs": [("Q4_K", 110.0, 1.05)]}
    )
    root = ET.fromstring(figure)
    texts = {"".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text")}
    assert {"ours", "theirs", "sketch 3", "int8", "Q4_K", "tokens/s"} <= texts
    front = next(e for e in root.iter() if e.get("class") == "line front")
    assert len(front.get("points", "").split()) == 2
    root = ET.fromstring(look_ahead_ablation({"low-rank": [(0, 0.9, 1.02), (1, 0.88, 1.03), (2, 0.8, 1.1)]}))
    assert root.get("viewBox") == "0 0 880 300"
    assert sum(e.tag.endswith("polyline") for e in root.iter()) == 2
