"""An HTML page in one file: no scripts, nothing fetched, readable on a phone, light and dark."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from dejavu.report import style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of a row is its heading."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        """The table, in a box that scrolls sideways by itself."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.headers)
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(self.caption)}"><table>'
            f"<caption>{escape(self.caption)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )


class Page:
    """Collects the parts of a page in their order."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, content: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(content)}</h2>")

    def paragraph(self, content: str) -> None:
        """Add running text."""
        self._parts.append(f"<p>{escape(content)}</p>")

    def command(self, command: str, label: str = "") -> None:
        """Add a command line, and before it what it is."""
        before = f"{escape(label)} " if label else ""
        self._parts.append(f'<p class="command">{before}<code>{escape(command)}</code></p>')

    def verdict(self, sentences: Sequence[str]) -> None:
        """Add what all the figures come to; the first sentence stands out."""
        lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
        self._parts.append(f'<div class="verdict">{lines}</div>')

    def facts(self, values: Mapping[str, str]) -> None:
        """Add names and values."""
        items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in values.items())
        self._parts.append(f"<dl>{items}</dl>")

    def charts(self, charts: Sequence[tuple[str, str]]) -> None:
        """Add (SVG, caption) pairs side by side, as many as there is room for."""
        figures = "".join(
            f"<figure>{chart}"
            + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "")
            + "</figure>"
            for chart, caption in charts
        )
        self._parts.append(f'<div class="charts">{figures}</div>')

    def table(self, table: Table, *, folded: str = "") -> None:
        """Add a table; `folded` is the label under which it can be opened (empty: it is open)."""
        html = table.html()
        self._parts.append(
            f"<details><summary>{escape(folded)}</summary>{html}</details>" if folded else html
        )

    def html(self) -> str:
        """The whole page."""
        sheet = style.variables(":root") + style.PAGE + style.CHART
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{sheet}\n</style>\n</head>\n<body>\n<main>\n"
            + "\n".join(self._parts)
            + "\n</main>\n</body>\n</html>\n"
        )


def standalone_svg(chart: str) -> str:
    """A chart as a file of its own: with its style, and a background of the colour scheme."""
    start = chart.index(">") + 1
    sheet = style.variables("svg.chart") + style.CHART + "\nsvg.chart{background:var(--bg)}"
    return f"{chart[:start]}<style>{sheet}</style>{chart[start:]}\n"
