"""What a frontier shows: a picture, and a page with the table and the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dejavu.report import Axis, Group, Point, Series, line_chart, scatter_chart, side_by_side, standalone_svg

if TYPE_CHECKING:
    from collections.abc import Mapping

    Rows = Mapping[str, list[Mapping[str, Any]]]

LABELS = {
    "adapted": "adapted",
    "gentler": "the last one, gentler plans",
    "training-free": "plans of the original",
    "dense": "dense original",
}
"""By the kind of a row; the order of colours."""


def frontier_svg(found: Mapping[str, Any]) -> str:
    """A standalone SVG of two charts: perplexity ratio against the MLP bytes touched, and against tokens/s."""
    rows = _by_kind(found)
    ratio = Axis("perplexity ratio to the original", log=True)
    quality = line_chart(
        "Quality against bytes",
        [
            Series(LABELS[kind], _column(rows, kind, "touched_share"), _column(rows, kind, "ppl_ratio"))
            for kind in rows
        ],
        x=Axis("MLP bytes read, choosing included", percent=True),
        y=ratio,
    )
    speed = scatter_chart(
        "Quality against speed",
        [
            Group(
                LABELS[kind],
                [Point(r["tokens_per_s"], r["ppl_ratio"], _label(r)) for r in rows[kind]],
            )
            for kind in rows
        ],
        x=Axis("tokens/s"),
        y=ratio,
        pareto=("high", "low"),
    )
    return standalone_svg(
        side_by_side(
            [quality, speed], "Perplexity ratio against MLP bytes read, and against tokens per second"
        )
    )


def frontier_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Lines of a table: kind, density, MLP bytes read, perplexity ratio, tokens/s."""
    return [
        (
            LABELS[row["kind"]],
            f"{row['density']:.3f}",
            f"{100 * row['touched_share']:.1f}%",
            f"{row['ppl_ratio']:.4f}",
            f"{row['tokens_per_s']:.1f} ± {row['spread']:.1f}",
        )
        for row in found["rows"]
    ]


HEADERS = ("", "density", "MLP bytes read", "ppl ratio", "tokens/s")
"""Of `frontier_rows`."""


def frontier_card(found: Mapping[str, Any]) -> str:
    """README.md of the folder."""
    base, codec = found["base"], found["codec"]
    lines = [HEADERS, ("---",) * len(HEADERS), *frontier_rows(found)]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(
        [
            f"# {base} at several densities",
            "",
            f"{base}, adapted in one run to fewer and fewer MLP neurons, beside plans of the original (the same kind of "
            "selection at the same densities, nothing trained) and the dense original. The last model, that of the lowest "
            "density, bears gentler plans too.",
            "",
            "![perplexity ratio against MLP bytes and against tokens/s](frontier.svg)",
            "",
            *table,
            "",
            f"Weights in {codec}, native engine. Perplexities: on {found['tokens']:,} held-out tokens, over that of the "
            f"dense original in {found['base_codec']}. MLP bytes read: of a token, over those of the dense model; what is "
            f"read to choose by is included. Speeds: {found['test']} of one sequence on {found['threads']} threads "
            f"({found['machine']['cpu']}), medians of {found['repeats']} repeats in turn ± half the distance between the "
            "quartiles; they belong to this machine and to how busy it was.",
            "",
            "## Use",
            "",
            "```bash",
            *(_use(row, found) for row in found["rows"]),
            "```",
            "",
            "FOLDER is this folder. Each model folder has a card with its recipe and curve. Made by:",
            "",
            f"`{found['command']}`",
            "",
            "All figures are in `frontier.json`.",
            "",
        ]
    )


def _use(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if row["model"] is not None:
        plan = f" --plan FOLDER/{row['plan']}" if row["kind"] == "gentler" else ""
        return f'dejavu generate "Hello" -m FOLDER/{row["model"]}{plan}'
    plan = "off" if row["plan"] is None else f"FOLDER/{row['plan']}"
    return f'dejavu generate "Hello" -m {found["base"]} --codec {found["codec"]} --plan {plan}'


def _label(row: Mapping[str, Any]) -> str:
    return "dense" if row["plan"] is None else f"{row['target']:g}"


def _by_kind(found: Mapping[str, Any]) -> Rows:
    rows = {kind: [row for row in found["rows"] if row["kind"] == kind] for kind in LABELS}
    return {kind: some for kind, some in rows.items() if some}


def _column(rows: Rows, kind: str, name: str) -> list[float]:
    return [row[name] for row in rows[kind]]
