"""Tables of dejavu beside other programs: speed and agreement beside llama.cpp, and rows that NumPy and torch gather.

What is read is what `benchmarks/speed.py`, `agreement.py` and `sparse.py gather` write.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from results_suite.reading import markdown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from results_suite.reading import Reader

    Found = Mapping[str, Any]

SPEED = "peer/speed"
GATHER = "opt-1.3b/gather"
AGREEMENTS = {"peer/agreement": "", "peer/agreement-f32": "--as-f32", "peer/agreement-q8": "--as-q8"}
"""Part -> option of agreement.py."""
_FILE = "the file, unfused attention"
_SIDES = {
    ("peer/agreement-f32", ""): (
        "native f32, the file dequantised (`--as-f32`)",
        "the same, unfused attention",
    ),
    ("peer/agreement", ""): ("native f32", "the file as it comes, fused attention"),
    ("peer/agreement-q8", "emulated"): ("reference with 8-bit activations (`--as-q8`, emulated)", _FILE),
    ("peer/agreement-q8", "itself"): ("llama.cpp itself, fused attention (`itself`)", _FILE),
    ("peer/agreement-q8", "in_step"): ("as emulated, near ties as llama.cpp has them (`in_step`)", _FILE),
}
"""Part, and the pair of it: what is compared."""


def speed_table(document: Found) -> str:
    """Decoding and prompts beside llama.cpp, from the JSON of speed.py."""
    header = [
        "model",
        "ours / llama.cpp",
        "test",
        "ours, per token",
        "llama.cpp, per token",
        "llama.cpp's time / ours",
        "% of read bandwidth",
    ]
    return markdown(
        header,
        [
            [
                row["model"],
                f"{row['codec']} / {row['peer_type']}",
                row["test"],
                f"{_per_token(row, 'ours')} ±{_spread(row['ours']):.0%}",
                _per_token(row, "peer"),
                f"**{row['ratio']:.2f}x**",
                f"{row['share']:.0%}" if row["share"] else "",
            ]
            for row in document["rows"]
        ],
    )


def batch_table(document: Found) -> str:
    """Tokens/s of several sequences decoded together, over one."""
    return markdown(
        ["model", "codec", "sequences", "one, ms", "together, ms a step", "tokens/s over one"],
        [
            [
                row["model"],
                row["codec"],
                str(row["size"]),
                f"{1e3 * row['one']:.1f}",
                f"{1e3 * row['together']:.1f}",
                f"{row['ratio']:.2f}x",
            ]
            for row in document["batches"]
        ],
    )


def conditions(document: Found) -> str:
    """What speed.py's figures were taken under."""
    low, high = document["bandwidth"]
    return (
        f"{document['cpu']}, {document['threads']} threads, read bandwidth {low / 1e9:.0f} to "
        f"{high / 1e9:.0f} GB/s, {document['peer']}, {document['date']}"
    )


def speed(read: Reader) -> str:
    """`speed_table` of the finished part, with its conditions."""
    document = read.json(SPEED)
    return f"{speed_table(document)}\n\n{conditions(document)}" if document else ""


def batches(read: Reader) -> str:
    """`batch_table` of the finished part."""
    document = read.json(SPEED)
    return batch_table(document) if document else ""


def gather(read: Reader) -> str:
    """The chosen rows where they lie, against gathering them first."""
    rows = (read.json(GATHER) or {"rows": []})["rows"]
    return markdown(
        ["codec", "k", "dejavu, ms", "torch, ms", "over torch", "NumPy, ms", "over NumPy"],
        [
            [
                row["codec"],
                f"{row['density']:g}",
                row["ms"]["dejavu"],
                *(
                    cell
                    for side in ("torch", "numpy")
                    for cell in (
                        (row["ms"][side], f"{row[f'over_{side}']:.1f}x") if side in row["ms"] else ("", "")
                    )
                ),
            ]
            for row in rows
        ],
    )


def agreement(read: Reader) -> str:
    """Greedy texts, divergence and perplexity beside llama.cpp."""
    return markdown(
        [
            "ours",
            "llama.cpp",
            "greedy texts equal",
            "mean KL",
            "median KL",
            "same top 1",
            "perplexity, ours / llama.cpp",
        ],
        [
            [
                *sides,
                found["greedy_texts_equal"],
                f"{found['mean_kl']:.1e}",
                f"{found['median_kl']:.1e}",
                f"{found['same_top_1']:.1%}",
                f"{found['our_perplexity']:.4f} / {found['peer_perplexity']:.4f}",
            ]
            for sides, found in _agreements(read)
        ],
    )


def first_differences(read: Reader) -> str:
    """Of each prompt, the first token that differs and how far our logit of our token lies above that of theirs."""
    lines = []
    for (ours, _), found in _agreements(read):
        cells = [
            "none" if at is None else f"{at['token']}: {at['gap']:.2f}" if "gap" in at else str(at["token"])
            for at in found["first_differences"]
        ]
        lines.append([ours, *cells])
    return markdown(["prompt", *map(str, range(1, len(lines[0])))], lines) if lines else ""


def _agreements(read: Reader) -> Iterator[tuple[tuple[str, str], Found]]:
    for (part, pair), sides in _SIDES.items():
        if document := read.json(part):
            yield sides, document[pair] if pair else document


def _per_token(row: Found, side: str) -> str:
    return f"{1e3 * statistics.median(row[side]) / row['tokens']:.2f} ms"


def _spread(times: list[float]) -> float:
    """Half of slowest minus fastest, over the median."""
    return (max(times) - min(times)) / statistics.median(times) / 2
