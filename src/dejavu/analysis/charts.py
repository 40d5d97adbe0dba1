"""The charts of a report: each an SVG and its caption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dejavu.analysis.curves import SELECTORS
from dejavu.analysis.verdict import SMALL, percent
from dejavu.report import Axis, Series, bar_chart, heat_map, line_chart

if TYPE_CHECKING:
    from collections.abc import Mapping

    Document = Mapping[str, Any]
    Chart = tuple[str, str]

_WORST = 10.0
"""Perplexity ratios beyond are cut off; the tables have them."""
_TITLES = {"neurons": "Neurons", "heads": "Attention heads", "both": "Neurons and heads"}
_DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1)
_LAYER = Axis("layer", whole=True)


def quality_chart(document: Document, part: str) -> Chart:
    """Perplexity ratio against density."""
    series = []
    for color, selector in enumerate(SELECTORS):
        points = document["quality"]["points"]
        curve = [p for p in points if (p["part"], p["selector"]) == (part, selector)]
        if curve:
            achieved = "heads" if part == "heads" else "neurons"
            densities = [1.0, *(p[achieved] for p in curve)]
            ratios = [1.0, *(p["ppl_ratio"] for p in curve)]
            dashed = selector in ("static", "random")
            series.append(Series(selector, densities, ratios, color=color, dashed=dashed))
    chart = line_chart(
        _TITLES[part],
        series,
        x=Axis("density: share computed", log=True, percent=True, high=1.0, ticks=_DENSITIES),
        y=Axis("perplexity ratio", log=True, low=0.98, high=_WORST, ticks=(1, 1.2, 1.5, 2, 3, 5, 10)),
        mark=SMALL,
        description=f"{_TITLES[part]}: perplexity ratio against density, by selector",
    )
    return chart, f"Perplexity ratio to dense. Lines that reach the top go beyond {_WORST:g}."


def error_chart(document: Document, part: str) -> Chart:
    """Error of each layer's block under the oracle."""
    curve = document["blocks"][part]["relative_error"]["oracle"]
    chart = heat_map(
        f"Error with the best {part}",
        list(zip(*(entry["error"] for entry in curve), strict=True)),
        rows=[str(layer) for layer in range(document["shape"]["layers"])],
        columns=[f"{100 * entry['density']:.0f}%" for entry in curve],
        row_label="layer",
        column_label="density",
        low=0,
        high=1,
        percent=True,
        description=f"Relative error of each layer's output against the density of its {part}, oracle selection",
    )
    return chart, "Relative error of the block's output, oracle selection."


def selector_chart(document: Document) -> Chart:
    """Error of the MLPs at half density, by selector."""
    series = []
    for color, selector in enumerate(SELECTORS):
        curve = document["blocks"]["neurons"]["relative_error"][selector]
        half = min(curve, key=lambda entry: abs(entry["density"] - 0.5))
        series.append(Series(selector, range(len(half["error"])), half["error"], color=color))
    chart = line_chart("Half of the neurons", series, x=_LAYER, y=Axis("relative error", low=0, percent=True))
    return chart, "Relative error of the MLP's output when half of its neurons are computed."


def energy_chart(document: Document) -> Chart:
    """Neurons needed for most of the output."""
    shares = document["blocks"]["neurons"]["share_for_energy"]
    series = [Series(f"{float(name):.0%}", range(len(values)), values) for name, values in shares.items()]
    axis = Axis("share of neurons", low=0, high=1, percent=True)
    chart = line_chart("Neurons needed", series, x=_LAYER, y=axis)
    return (
        chart,
        "The oracle's share of the neurons that keeps 90, 95, 99% of the output's energy, 1 - |F - F_S|² / |F|².",
    )


def zeros_chart(document: Document) -> Chart:
    """Exact zeros by layer."""
    shares = document["zeros"]["share"]
    names = [str(layer) for layer in range(len(shares))]
    axis = Axis("exact zeros", percent=True, high=1)
    chart = bar_chart("Natural zeros", names, shares, x_label="layer", y=axis)
    return chart, "Share of the neurons whose activation is exactly zero, mean over tokens."


def overlap_chart(document: Document, key: str) -> Chart:
    """Overlap of a token's neurons with its neighbour's ("neighbours") or with a fixed set ("static")."""
    series = []
    for color, entry in enumerate(document["overlap"]["neurons"]):
        values, chance = entry[f"{key}_jaccard"], entry["chance_jaccard"]
        series.append(Series(percent(entry["density"]), range(len(values)), values, color=color))
        series.append(Series("", [0, len(values) - 1], [chance, chance], dashed=True, color=color))
    title, caption = {
        "neighbours": (
            "Neighbouring tokens",
            "Overlap of a token's neurons with those of the token before it.",
        ),
        "static": ("A fixed set", "Overlap of a token's neurons with those used most on other text."),
    }[key]
    return line_chart(title, series, x=_LAYER, y=Axis("overlap (Jaccard)", low=0, high=1)), caption


def batch_chart(document: Document) -> Chart:
    """What batches of unrelated tokens touch."""
    series = []
    for color, entry in enumerate(document["overlap"]["neurons"]):
        density, unions = entry["density"], entry["unions"]
        sizes = [1, *(union["batch"] for union in unions)]
        series.append(Series(percent(density), sizes, [density, *(u["mean"] for u in unions)], color=color))
        chance = [density, *(u["chance"] for u in unions)]
        series.append(Series("", sizes, chance, dashed=True, color=color))
    chart = line_chart(
        "Batches",
        series,
        x=Axis("unrelated tokens in a batch", log=True, ticks=(1, 2, 4, 8, 16, 32)),
        y=Axis("neurons touched", low=0, high=1, percent=True),
    )
    return chart, "Neurons that a batch touches together, mean over layers."


def cosine_chart(document: Document, block: str) -> Chart:
    """Cosine of a block's input with that of earlier layers."""
    series = [
        Series(f"{e['distance']} apart", range(e["distance"], e["distance"] + len(e["cosine"])), e["cosine"])
        for e in document["similarity"][block]
    ]
    title = {"attention": "Input of attention", "mlp": "Input of the MLP"}[block]
    chart = line_chart(title, series, x=_LAYER, y=Axis("cosine", high=1))
    return chart, "Mean cosine of the residual stream with that of 1, 2 or 4 layers before."


def added_chart(document: Document) -> Chart:
    """Size of what blocks add to the residual stream."""
    series = []
    for block, label in (("attention", "attention"), ("mlp", "MLP")):
        ratio = document["blocks"][f"{block}_added"]["ratio"]
        series.append(Series(label, range(len(ratio)), ratio))
    axis = Axis("|F(x)| / |x|", log=True)
    chart = line_chart("What blocks add", series, x=_LAYER, y=axis, mark=1.0)
    return chart, "Size of a block's output beside what enters it, mean over tokens. Dotted: equal."


def head_chart(document: Document, key: str) -> Chart:
    """One property of every head."""
    title, caption = {
        "heaviest_key": (
            "Heaviest key",
            "Share of a token's attention that its heaviest key takes, mean over tokens.",
        ),
        "entropy": (
            "Evenness",
            "Entropy of the attention beside the largest possible: 100% is an even mixture.",
        ),
        "in_top_half": ("Selected", "How often a head is in the stronger half of its layer."),
    }[key]
    chart = heat_map(
        title,
        document["attention"][key],
        rows=[str(layer) for layer in range(document["shape"]["layers"])],
        columns=[str(head) for head in range(document["shape"]["heads"])],
        row_label="layer",
        column_label="head",
        low=0,
        high=1,
        percent=True,
    )
    return chart, caption
