"""Adaptation and analysis in short; each has a longer report of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dejavu.analysis.charts import quality_chart
from dejavu.report import Axis, Series, line_chart

if TYPE_CHECKING:
    from collections.abc import Mapping

    Document = Mapping[str, Any]


def adaptation_chart(document: Document) -> tuple[str, str]:
    """Perplexity ratio on held-out text while the model was adapted."""
    curve = document["curve"]
    ratios = [point["ratio"] for point in curve]
    chart = line_chart(
        "Adaptation",
        [Series("ratio", [point["tokens"] for point in curve], ratios)],
        x=Axis("tokens seen"),
        y=Axis("perplexity ratio", log=True, low=min(1.0, *ratios)),
        mark=1.0,
        description="Perplexity ratio of the masked model to the dense original against tokens seen",
    )
    return chart, "Held-out perplexity under the masks, over that of the dense original. Dotted: no loss."


def adaptation_sentences(document: Document) -> list[str]:
    """What it came to."""
    native, first = document["native"], document["curve"][0]
    before = "Before the last stage of the run" if len(document.get("stages", ())) > 1 else "Before"
    return [
        f"After {document['tokens']:,} tokens in {document['seconds'] / 3600:.2f} hours, the adapted model with "
        f"{100 * native['density']:.0f}% of its neurons has {native['ppl_ratio']:.4f} times the perplexity of the dense "
        f"original in {native['base_codec']}, on {native['tokens']:,} held-out tokens, native engine, weights in "
        f"{document['options']['codec']}. {before}, the same masks cost {first['ratio']:.4f}."
    ]


def analysis_charts(document: Document) -> list[tuple[str, str]]:
    """Perplexity ratio against density, of those parts that were measured."""
    parts = dict.fromkeys(point["part"] for point in document["quality"]["points"])
    return [quality_chart(document, part) for part in parts if part in ("neurons", "heads", "both")]
