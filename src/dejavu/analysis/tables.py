"""The numbers behind the charts of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dejavu.analysis.curves import SELECTORS
from dejavu.analysis.verdict import percent
from dejavu.report import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Document = Mapping[str, Any]


def quality_table(document: Document, part: str) -> Table:
    """Perplexity ratio of `part` by selector and density."""
    points = [p for p in document["quality"]["points"] if p["part"] == part]
    densities = sorted({p["density"] for p in points}, reverse=True)
    rows = []
    for selector in SELECTORS:
        known = {p["density"]: p for p in points if p["selector"] == selector}
        if known:
            rows.append([selector, *(_ratio(known.get(density)) for density in densities)])
    caption = f"Perplexity ratio by density, ± standard error over the pieces: {part}"
    return Table(caption, ["selector", *map(percent, densities)], rows)


def layer_table(document: Document) -> Table:
    """Per layer: zeros, energies, errors at half density, sizes of the blocks."""
    blocks = document["blocks"]
    shares = blocks["neurons"]["share_for_energy"]
    half = {
        selector: entry["error"]
        for selector, curve in blocks["neurons"]["relative_error"].items()
        for entry in curve
        if round(entry["density"], 2) == 0.5
    }
    columns = [document["zeros"]["share"], *shares.values(), *half.values()]
    added = [blocks[f"{block}_added"]["ratio"] for block in ("attention", "mlp")]
    rows = [
        [str(layer), *(percent(c[layer]) for c in columns), *(f"{c[layer]:.2f}" for c in added)]
        for layer in range(document["shape"]["layers"])
    ]
    headers = ["layer", "zeros", *(f"for {float(name):.0%}" for name in shares)]
    headers += [*(f"{selector} 50%" for selector in half), "attention adds", "MLP adds"]
    caption = "Exact zeros; neurons for so much of the energy; error at density 50%; |F(x)| / |x|"
    return Table(caption, headers, rows)


def overlap_table(document: Document) -> Table:
    """How much sets have in common, for neurons and heads."""
    rows = []
    for part in ("neurons", "heads"):
        for entry in document["overlap"][part]:
            unions = {u["batch"]: percent(u["mean"]) for u in entry["unions"]}
            overlaps = [
                entry[key] for key in ("neighbours_jaccard_mean", "static_jaccard_mean", "chance_jaccard")
            ]
            rows.append(
                [
                    f"{part} {percent(entry['density'])}",
                    *(f"{overlap:.2f}" for overlap in overlaps),
                    percent(entry["static_coverage_mean"]),
                    *(unions.get(batch, "") for batch in (2, 8, 32)),
                ]
            )
    headers = [
        "sets",
        "neighbours",
        "fixed set",
        "chance",
        "covered by fixed",
        "batch 2",
        "batch 8",
        "batch 32",
    ]
    caption = (
        "Mean over layers: overlap (Jaccard), share of a token's set in the fixed one, unions of batches"
    )
    return Table(caption, headers, rows)


def attention_table(document: Document) -> Table:
    """Means over the heads of a layer."""
    attention = document["attention"]
    rows = [
        [
            str(layer),
            *(percent(_mean(attention[key][layer])) for key in ("entropy", "heaviest_key", "first_key")),
            f"{_mean(attention['gathering'][layer]):+.3f}",
        ]
        for layer in range(document["shape"]["layers"])
    ]
    headers = ["layer", "evenness", "heaviest key", "first token", "gathering"]
    caption = (
        "Mean over heads. Gathering: how much nearer to a token (in cosine) the mean of the others but the first is if it "
        "is weighted by attention"
    )
    return Table(caption, headers, rows)


def _ratio(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return ""
    error = "" if point["error"] is None else f" ± {point['error']:.2g}"
    return f"{point['ppl_ratio']:.4g}{error}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
