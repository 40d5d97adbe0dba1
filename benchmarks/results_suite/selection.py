"""Tables of ways to choose neurons: what they cost, what choosing itself takes, and what looking ahead does to them.

All read the rows of `benchmarks/selector_table.py`: one for each selector, density and text, and one of its speed.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dejavu.report.figures import look_ahead_ablation
from results_suite.parts import DISTANCES, TRAINED
from results_suite.reading import markdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from results_suite.reading import Reader

DENSITIES = (0.5, 0.3)
"""Of the tables that are not of all densities."""
AHEAD = {
    "low rank": {distance: f"low_rank{distance}" for distance in DISTANCES},
    "sketch, 4 bits": {0: "sketch4", 1: "sketch4+1", 2: "sketch4+2"},
}
"""Selectors by their distance."""
PICTURE = "look-ahead.svg"


@dataclass(frozen=True)
class Setting:
    """A selector at a density, with its rows."""

    selector: str
    density: float
    rows: list[dict[str, Any]]

    def ratios(self, texts: Sequence[str]) -> list[str]:
        """Perplexity ratios, a cell for each text."""
        found = {row["text"]: row["ppl_ratio"] for row in self.rows}
        return [ratio(found[text]) if text in found else "" for text in texts]

    def mean(self, figure: str) -> float | None:
        """Over the texts, of those that have it."""
        found = [row[figure] for row in self.rows if figure in row]
        return statistics.fmean(found) if found else None

    def cell(self, figure: str, show: Callable[[float], str]) -> str:
        """The mean of a figure, or nothing."""
        value = self.mean(figure)
        return "" if value is None else show(value)

    def sets(self) -> list[str]:
        """Recall and precision."""
        return [self.cell(figure, "{:.2f}".format) for figure in ("recall", "precision")]

    def mlp_bytes(self) -> str:
        """What the MLPs read of what the dense ones would."""
        return self.cell("mlp_bytes_share", "{:.0%}".format)


def settings(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, float], Setting]:
    """By selector and density, in the order of the rows."""
    found: dict[tuple[str, float], Setting] = {}
    for row in rows:
        key = row["selector"], row["density"]
        found.setdefault(key, Setting(*key, [])).rows.append(row)
    return found


def texts_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """In the order of the rows."""
    return list(dict.fromkeys(row["text"] for row in rows))


def ratio(value: float) -> str:
    """Three decimals of what is near 1, fewer of what is far from it."""
    return f"{value:.3f}" if value < 10 else f"{value:,.0f}"


def named(selector: str) -> str:
    """A selector as a reader knows it: sketch4+1 is "sketch, 4 bits, 1 ahead"."""
    found = re.fullmatch(r"(sketch|values|low_rank|labels)?(\d*|[a-z]+)(?:\+(\d))?", selector)
    if not found:
        return selector
    kind, number, ahead = found.groups()
    if kind in ("low_rank", "labels"):
        name, ahead = "low rank" + (", of labels" if kind == "labels" else ""), number
    elif kind == "sketch":
        name = f"sketch, {number} bits"
    elif kind == "values":
        name = f"sketch, {number} bits, also as values"
    else:
        name = {"threshold": "threshold on the gate"}.get(selector, selector)
    return f"{name}, {ahead} ahead" if int(ahead or 0) else name


def selectors(part: str) -> Callable[[Reader], str]:
    """What choosing costs, at all densities."""

    def table(read: Reader) -> str:
        rows = read.rows(part) or []
        texts = texts_of(rows)
        return markdown(
            ["selector", "density", *texts, "recall", "precision", "MLP bytes"],
            [
                [named(s.selector), f"{s.density:g}", *s.ratios(texts), *s.sets(), s.mlp_bytes()]
                for s in settings(rows).values()
            ],
        )

    return table


def predictors(read: Reader) -> str:
    """What choosing itself reads and takes, beside what it brings."""
    rows = _at_all_distances(read)
    fast = {(row["selector"], row["density"]): row for row in read.rows("model/selector-speed") or []}
    for part in TRAINED.values():
        read.mention(part)
    texts = texts_of(rows)
    header = ["selector", "density", *texts, "recall", "precision", "read to choose", "MLP bytes"]
    lines = []
    for key, s in settings(rows).items():
        if s.density not in DENSITIES or not s.mean("selector_bytes"):
            continue  # those that read nothing, or all
        bytes_read = s.cell("selector_bytes", lambda n: f"{n / 1e6:.1f} MB")
        cells = [named(s.selector), f"{s.density:g}", *s.ratios(texts), *s.sets(), bytes_read, s.mlp_bytes()]
        lines.append([*cells, *_speed(fast.get(key))])
    return markdown([*header, "choosing, ms", "a token, ms", "tokens/s over own dense"], lines)


def _at_all_distances(read: Reader) -> list[dict[str, Any]]:
    """Rows of selectors, each setting once: those at distance 0 are measured with the others of look-ahead, too."""
    rows = read.rows("model/selectors") or []
    known = settings(rows)
    return [
        *rows,
        *(
            row
            for row in read.rows("model/look-ahead") or []
            if (row["selector"], row["density"]) not in known
        ),
    ]


def _speed(row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return [""] * 3
    return [
        f"{row['choosing_ms']:.2f}",
        f"{1000 / row['tokens_per_s']:.1f}",
        f"{row['speedup']:.2f} ± {row['spread']:.2f}",
    ]


def compensators(read: Reader) -> str:
    """The same plans without and with something in the place of what they skip."""
    filled = read.rows("model/compensated") or []
    bare = settings(read.rows("model/selectors") or [])
    texts = texts_of(filled)
    lines = []
    for s in settings(filled).values():
        selector, _, rank = s.selector.partition(" + rank ")
        without = bare.get((selector, s.density), Setting(selector, s.density, []))
        both = zip(without.ratios(texts), s.ratios(texts), strict=True)
        cells = [named(selector), f"{s.density:g}", rank, *(cell for pair in both for cell in pair)]
        lines.append([*cells, without.mlp_bytes(), s.mlp_bytes()])
    columns = [column for text in texts for column in (f"{text}, without", "with")]
    return markdown(["selector", "density", "rank", *columns, "MLP bytes, without", "with"], lines)


def look_ahead(read: Reader) -> str:
    """Recall and perplexity ratios by distance, under the picture of them."""
    rows = read.rows("model/look-ahead") or []
    texts = texts_of(rows)
    found = by_distance(rows)
    if not found:
        return ""
    table = markdown(
        ["selector", "density", "layers ahead", "under the plan", "recall", *texts],
        [
            [
                kind,
                f"{density:g}",
                str(distance),
                s.cell("measured_density", "{:.2f}".format),
                s.sets()[0],
                *s.ratios(texts),
            ]
            for (kind, density), runs in found.items()
            for distance, s in runs
        ],
    )
    for distance in DISTANCES:
        read.mention(f"model/predictors-{distance}")
    return f"![Recall and perplexity ratio against the distance in layers]({PICTURE})\n\n{table}"


def by_distance(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, float], list[tuple[int, Setting]]]:
    """Runs by kind of selector and density, for each distance that is there; not of those at one distance alone."""
    known = settings(rows)
    found = {}
    for kind, names in AHEAD.items():
        for density in DENSITIES:
            runs = [(n, known[name, density]) for n, name in names.items() if (name, density) in known]
            if len(runs) > 1:
                found[kind, density] = runs
    return found


def look_ahead_picture(read: Reader) -> str:
    """An SVG of what the table shows, ratios on the first text; "" where there is nothing to show."""
    rows = read.rows("model/look-ahead") or []
    curves = {
        f"{kind}, {density:g}": [
            (distance, s.mean("recall") or 0.0, row["ppl_ratio"])
            for distance, s in runs
            for row in s.rows
            if row["text"] == texts_of(rows)[0]
        ]
        for (kind, density), runs in by_distance(rows).items()
    }
    return look_ahead_ablation(curves) if curves else ""
