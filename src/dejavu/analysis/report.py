"""The document of `analyze` as one HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dejavu.analysis import charts, tables
from dejavu.analysis.verdict import SMALL
from dejavu.report import Page

if TYPE_CHECKING:
    from collections.abc import Mapping

    Document = Mapping[str, Any]


def render_report(document: Document) -> str:
    """The page: verdict, charts, and the numbers behind them in tables."""
    page = Page(f"Contextual sparsity of {document['model']}")
    page.verdict(document["verdict"])
    page.facts(_facts(document))
    _add_quality(page, document)
    _add_layers(page, document)
    _add_overlap(page, document)
    _add_stream(page, document)
    _add_attention(page, document)
    return page.html()


def _facts(document: Document) -> dict[str, str]:
    shape, tokens = document["shape"], document["tokens"]
    activation = f"{'gated ' if shape['gated'] else ''}{shape['activation']}"
    version = document["versions"].get("dejavu-llm", "")
    return {
        "Model": f"{document['model']}: {shape['family']}, {shape['layers']} layers of {shape['neurons']} neurons "
        f"({activation}) and {shape['heads']} heads",
        "Weights": f"{document['codec']}, K/V {document['kv_dtype']}, {document['executor']} executor",
        "Text": f"{document['text']}: {tokens['evaluation']:,} tokens judged, in pieces of up to {tokens['piece']}; "
        f"{tokens['calibration']:,} before them for the fixed sets",
        "Machine": str(document["machine"]["cpu"]),
        "Made": f"{document['date']}, dejavu {version}, seed {document['seed']}",
    }


def _add_quality(page: Page, document: Document) -> None:
    page.heading("What quality is left when only a part is computed")
    page.paragraph(
        "The two-pass test: of each token, only the neurons (or heads) with the largest scores are computed, in all "
        "layers. Oracle: scored by what each really contributes, the ceiling for any predictor. Threshold: by the gate "
        "alone. Static: always the same, those used most on other text. Random: the floor. Dotted: a ratio of "
        f"{SMALL:g}. The dense perplexity is {document['quality']['dense_perplexity']:,.2f}."
    )
    parts = ("neurons", "heads", "both")
    page.charts([charts.quality_chart(document, part) for part in parts])
    for part in parts:
        page.table(tables.quality_table(document, part), folded=f"Numbers: {part}")


def _add_layers(page: Page, document: Document) -> None:
    page.heading("Layer by layer")
    page.paragraph(
        "How far a block's output is off when only a part of it is computed and all before it is dense: "
        "|F(x) - F_S(x)| / |F(x)|, mean over tokens."
    )
    shown = [charts.error_chart(document, "neurons"), charts.error_chart(document, "heads")]
    shown += [charts.selector_chart(document), charts.energy_chart(document)]
    if max(document["zeros"]["share"]) > 0.01:
        shown.append(charts.zeros_chart(document))
    page.charts(shown)
    page.table(tables.layer_table(document), folded="Numbers: layers")


def _add_overlap(page: Page, document: Document) -> None:
    page.heading("Does the set depend on the input?")
    page.paragraph(
        "The sets are the largest contributions of each token. Overlap is the size of the intersection over that of the "
        "union (Jaccard); dashed: what independent random sets would have. A batch touches the union of its tokens' sets."
    )
    page.charts(
        [
            charts.overlap_chart(document, "neighbours"),
            charts.overlap_chart(document, "static"),
            charts.batch_chart(document),
        ]
    )
    page.table(tables.overlap_table(document), folded="Numbers: overlap")


def _add_stream(page: Page, document: Document) -> None:
    page.heading("How fast the residual stream changes")
    page.paragraph(
        "Predictors that look ahead read the input of an earlier layer. That is the easier the less the blocks in between "
        "add to what passes through: the nearer the cosine of the two inputs is to 1."
    )
    shown = [charts.cosine_chart(document, block) for block in ("mlp", "attention")]
    page.charts([*shown, charts.added_chart(document)])


def _add_attention(page: Page, document: Document) -> None:
    attention = document["attention"]
    page.heading("How heads attend")
    page.paragraph(
        f"Of {attention['heads']} heads, {attention['uniform']} mix evenly (entropy of at least 90% of the largest "
        f"possible) and {attention['heavy_hitters']} are heavy hitters (half of a token's attention on one key); in "
        f"{attention['sinks']} half of the attention rests on the first token."
    )
    page.paragraph(
        "In the mean-shift view (Deja Vu, section 3.2) a head moves a token i towards the mean of all tokens j with the "
        "weights exp<q_i, k_j>. Even heads move all tokens alike, so that little is lost without them; heavy hitters "
        "gather a token with its like."
    )
    page.charts([charts.head_chart(document, key) for key in ("heaviest_key", "entropy", "in_top_half")])
    page.table(tables.attention_table(document), folded="Numbers: heads")
