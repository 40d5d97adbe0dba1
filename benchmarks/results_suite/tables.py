"""The tables of docs/results.md, each from the results of some parts."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from results_suite import beside
from results_suite.parts import ADAPTED, CODECS, FULL, MOST_ADAPTED
from results_suite.reading import markdown
from results_suite.selection import compensators, look_ahead, predictors, selectors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from results_suite.reading import Reader


def blocks(read: Reader) -> str:
    """Time of sparse blocks over the own dense ones, by density."""
    found = {codec: read.json(f"opt-1.3b/blocks-{codec}") for codec in CODECS}
    known = {codec: document["rows"] for codec, document in found.items() if document}
    columns = [(block, codec) for block in ("mlp", "attention") for codec in known]
    shares = {(r["block"], r["codec"], r["density"]): r["share"] for rows in known.values() for r in rows}
    densities = sorted({density for _, _, density in shares})
    return markdown(
        ["k", *(f"{'MLP' if block == 'mlp' else block}, {codec}" for block, codec in columns)],
        [
            [f"{k:g}", *(f"{shares[b, c, k]:.2f}" if (b, c, k) in shares else "" for b, c in columns)]
            for k in densities
        ],
    )


def models(read: Reader) -> str:
    """Whole models of synthetic weights under low-rank predictors."""
    found = [row for shape in FULL.shapes for row in (read.json(f"{shape}/plan") or {"rows": []})["rows"]]
    header = [
        "shape",
        "codec",
        "neurons",
        "heads",
        "context",
        "dense, ms",
        "by the plan, ms",
        "speed",
        "choosing",
    ]
    return markdown(
        header,
        [
            [
                f"{r['shape']} (synthetic weights)",
                r["codec"],
                f"{r['neurons']:.0%}",
                f"{r['heads']:.0%}",
                str(r["context"]),
                r["dense_ms"],
                r["sparse_ms"],
                f"**{r['speedup']:.2f}x**",
                f"{r['predictor_share']:.0%}",
            ]
            for r in found
        ],
    )


def frontier(read: Reader) -> str:
    """Perplexity ratio and tokens/s of codecs, plans and llama.cpp's files."""
    rows = read.rows("model/frontier") or []
    rates = {row["name"]: row for row in rows if "tokens_per_s" in row}
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if "ppl_ratio" in row:
            ratios.setdefault(row["name"], []).append(row["ppl_ratio"])
    return markdown(
        ["setting", "ppl ratio", "tokens/s"],
        [
            [
                name,
                f"{statistics.geometric_mean(found):.3f}",
                f"{rates[name]['tokens_per_s']:.1f} ± {rates[name]['spread']:.1f}" if name in rates else "",
            ]
            for name, found in ratios.items()
        ],
    )


def quality(*names: str) -> Callable[[Reader], str]:
    """Tasks and texts of one or more files of dejavu eval, a column for every run."""

    def table(read: Reader) -> str:
        found: dict[str, dict[str, Any]] = {}
        documents = [document for name in names if (document := read.json(name))]
        several = len({document["model"] for document in documents}) > 1
        for document in documents:
            for run in document["runs"]:
                label = f"{document['model']}, {run['name']}" if several else run["name"]
                found.setdefault(label, run)  # dense int8 is in both files
        runs = list(found.values())
        tasks = list(dict.fromkeys(task for run in runs for task in run["tasks"]))
        texts = list(dict.fromkeys(text for run in runs for text in run["texts"]))
        rows = [
            [
                f"{task}, {run_items(runs, task)} items",
                *(figure(run["tasks"].get(task), "acc", 100) for run in runs),
            ]
            for task in tasks
        ]
        rows.append(["**average**", *(value(run.get("average"), 100) for run in runs)])
        for text in texts:
            for metric, label, factor in (
                ("perplexity", "perplexity", 1),
                ("ppl_ratio", "over f32's", 1),
                ("kl_mean", "KL, nats", 1),
                ("same_top1", "same top 1, %", 100),
            ):
                cells = [figure(run["texts"].get(text), metric, factor) for run in runs]
                rows += [[f"{text}: {label}", *cells]] if any(cells) else []
        return markdown(["", *found], rows) if runs else ""

    return table


def run_items(runs: Sequence[dict[str, Any]], task: str) -> int:
    """Items that were scored, of the first run that has the task."""
    return next(int(run["tasks"][task]["items"]) for run in runs if task in run["tasks"])


def figure(entry: dict[str, Any] | None, metric: str, factor: float) -> str:
    """A metric of a task or text with its standard error."""
    return value((entry or {"metrics": {}})["metrics"].get(metric), factor)


def value(found: dict[str, Any] | None, factor: float) -> str:
    """Value ± standard error."""
    if not found:
        return ""
    digits = 1 if factor == 100 else 2 if found["value"] >= 10 else 4
    error = f" ± {factor * found['stderr']:.{digits}f}" if found["stderr"] is not None else ""
    return f"{factor * found['value']:.{digits}f}{error}"


def speed(*names: str) -> Callable[[Reader], str]:
    """Speeds of one or more files of dejavu bench."""

    def table(read: Reader) -> str:
        documents = [document for name in names if (document := read.json(name))]
        rows = [row for document in documents for row in document["results"]]
        several = len({row["model"] for row in rows}) > 1
        lines = []
        for r in rows:
            share = r.get("bandwidth_share")  # results of before 2026-11-30 have none
            lines.append(
                [
                    r["codec"],
                    ", ".join(
                        [*([r["model"]] if several else []), *([] if r["plan"] == "off" else [r["plan"]])]
                    ),
                    r["test"],
                    f"{r['tokens_per_s']:.1f} ± {r['tokens_per_s_spread']:.1f}",
                    f"{r['density']:.0%}" if r["density"] is not None else "",
                    f"{r['bytes_per_s'] / 1e9:.1f}" if r["bytes_per_s"] else "",
                    f"{share:.0%}" if share else "",
                ]
            )
        return markdown(
            [
                "codec",
                "model, plan" if several else "plan",
                "test",
                "tokens/s",
                "neurons",
                "GB/s",
                "% of read bandwidth",
            ],
            lines,
        )

    return table


def kernels(read: Reader) -> str:
    """MLPs from memory, one thread."""
    document = read.json("kernels") or {"rows": []}
    return markdown(
        ["MLP from memory, one thread", "per neuron, ns", "GB/s", "% of read bandwidth"],
        [
            [
                row["case"].removesuffix("/cold"),
                f"{row['ns_per_row']:.0f}",
                f"{row['GB_s']:.1f}",
                f"{row['bandwidth_share']:.0%}",
            ]
            for row in document["rows"]
            if row["case"].startswith("mlp/") and row["case"].endswith("/cold")
        ],
    )


TABLES: dict[str, Callable[[Reader], str]] = {
    "beside": beside.speed,
    "batches": beside.batches,
    "agreement": beside.agreement,
    "first differences": beside.first_differences,
    "blocks": blocks,
    "gather": beside.gather,
    "models": models,
    "shape speed": speed(*(f"{shape}/bench" for shape in FULL.shapes)),
    "selectors": selectors("model/selectors"),
    "predictors": predictors,
    "compensators": compensators,
    "look-ahead": look_ahead,
    "frontier": frontier,
    "quality": quality("model/eval-dense", "model/eval-plans"),
    "speed": speed("model/bench-dense", "model/bench-plans"),
    "adapted quality": quality(*(f"{name}/eval" for name in ADAPTED)),
    "adapted speed": speed(*(f"{name}/bench" for name in ADAPTED)),
    "adapted selectors": selectors(f"{MOST_ADAPTED}/selectors"),
    "relu quality": quality("relu/eval"),
    "relu speed": speed("relu/bench"),
    "kernels": kernels,
}
"""Name of a place in the document -> its table."""
