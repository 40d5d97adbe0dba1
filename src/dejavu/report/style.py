"""The one style sheet, of pages and of charts: colours are variables, so that dark is a second set of values."""

from __future__ import annotations

COLORS = 8
"""Series colours c0 ... c7; a chart with more series starts over."""

_LIGHT = ("#1f5fa8", "#c4501b", "#2b7d4f", "#8a3f97", "#9a6b00", "#0e7c86", "#b3275a", "#5b6470")
_DARK = ("#79b1f2", "#f09a6a", "#74c998", "#cf97dc", "#e0b64f", "#5fc9d3", "#f08bb0", "#aab3be")


def _variables(background: str, text: str, dim: str, rule: str, panel: str, colors: tuple[str, ...]) -> str:
    named = {"bg": background, "fg": text, "dim": dim, "rule": rule, "panel": panel}
    named |= {f"c{i}": color for i, color in enumerate(colors)}
    return ";".join(f"--{name}:{value}" for name, value in named.items())


_LIGHT_SET = _variables("#ffffff", "#1b1f24", "#5a636e", "#d9dee4", "#f5f7f9", _LIGHT)
_DARK_SET = _variables("#14171b", "#e4e8ec", "#9aa4af", "#353b43", "#1d2126", _DARK)


def variables(selector: str) -> str:
    """The colours as CSS variables of `selector`, with their dark values."""
    return (
        f"{selector}{{color-scheme:light dark;{_LIGHT_SET}}}\n"
        f"@media (prefers-color-scheme:dark){{{selector}{{{_DARK_SET}}}}}\n"
    )


CHART = "\n".join(
    [
        "svg.chart{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}",
        ".chart text{fill:var(--fg)}",
        ".chart .dim{fill:var(--dim)}",
        ".chart .title{font-weight:600;font-size:13px}",
        ".chart .grid{stroke:var(--rule);stroke-width:1}",
        ".chart .mark{stroke:var(--dim);stroke-width:1;stroke-dasharray:2 3}",
        ".chart .line{fill:none;stroke-width:2;stroke-linejoin:round}",
        ".chart .front{stroke:var(--dim);stroke-width:1.5;stroke-dasharray:6 4}",
        ".chart .dashed{stroke-dasharray:5 4}",
        ".chart .cell{fill:var(--c0);shape-rendering:crispEdges}",
        ".chart .frame{fill:none;stroke:var(--rule)}",
        ".chart .faint{opacity:.35}",
        *(f".chart .s{i}{{stroke:var(--c{i})}}\n.chart .f{i}{{fill:var(--c{i})}}" for i in range(COLORS)),
    ]
)

PAGE = """
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,sans-serif}
main{max-width:76rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem}
h2{font-size:1.2rem;margin:2.5rem 0 .5rem;padding-top:1rem;border-top:1px solid var(--rule)}
p,li{max-width:46rem}
a{color:var(--c0)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:1rem 0;color:var(--dim);font-size:.9rem}
dt{font-weight:600}
dd{margin:0;overflow-wrap:anywhere}
.verdict{background:var(--panel);border-left:4px solid var(--c0);padding:.75rem 1rem;margin:1rem 0}
.verdict p{margin:.35rem 0}
.verdict p:first-child{font-size:1.1rem;font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1.25rem;margin:1rem 0}
figure{margin:0;min-width:0;max-width:34rem}
figcaption{color:var(--dim);font-size:.875rem;margin-top:.25rem}
.command{color:var(--dim);font-size:.875rem;margin:.35rem 0;max-width:none}
code{font:.8125rem/1.45 ui-monospace,monospace;background:var(--panel);padding:.1rem .3rem;overflow-wrap:anywhere}
details{margin:.75rem 0}
summary{cursor:pointer;color:var(--c0)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;margin:.5rem 0}
caption{text-align:left;color:var(--dim);padding:.25rem 0}
th,td{padding:.2rem .6rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
thead th{color:var(--dim);font-weight:600}
"""
