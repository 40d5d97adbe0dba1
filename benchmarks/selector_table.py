r"""What each way of choosing neurons costs in quality and brings in speed: one table for one model.

    python benchmarks/selector_table.py quality --model smollm2 --text heldout.jsonl moby_dick.txt \
        --calibration calibration.jsonl --selectors oracle,sketch4,sketch4+1 --predictors low_rank0=PLAN \
        --densities .7,.5,.3 --at sketch4+1=.5,.3 --out selectors.jsonl
    python benchmarks/selector_table.py speed --model smollm2 --calibration calibration.jsonl --out selectors.jsonl
    python benchmarks/selector_table.py table --out selectors.jsonl

`quality` measures the perplexity ratio to the dense model in the same codec (every token of the text selects for itself),
recall and precision against the neurons that matter most, and what choosing and the whole MLPs read (as the evidence of
`dejavu train` counts it). `speed` measures tokens/s of the same plans against the model's own dense decoding, in turn.
Each finished row is appended to the file, so that both can be interrupted and go on. Thresholds are calibrated per layer on
training text; `random` and the label take the same density. sketch4+1 is a sketch of four bits that looks one layer ahead,
values5 one of five whose neurons hold what these bits say.
Low-rank predictors come from plans written by `dejavu train` (--predictors NAME=PLAN).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.environment import describe_machine
from dejavu.evaluation.perplexity import encode_documents, measure_perplexity
from dejavu.plan import (
    AccessPlan,
    Dense,
    LayerPlan,
    LowRank,
    Oracle,
    Pick,
    Products,
    Random,
    Sketch,
    Threshold,
)
from dejavu.texts import read_documents
from dejavu.training.calibrate import Calibration, Family, calibrate
from dejavu.training.compensator import fit_compensators
from dejavu.training.corpus import Corpus
from dejavu.training.cost import Cost
from dejavu.training.evidence import SetEvidence
from dejavu.training.inputs import BlockInputs
from dejavu.training.scores import Scores
from dejavu.training.stream import TokenStream
from dejavu.training.subject import open_subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dejavu.executor import Executor, Trace
    from dejavu.training.subject import Subject

PREFIX = 256
STEPS = 24


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the part that the command line names."""
    args = make_parser().parse_args(arguments)
    {"quality": quality, "speed": speed, "table": table}[args.part](args)


def make_parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=("quality", "speed", "table"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--calibration", type=Path, nargs="*", default=[])
    parser.add_argument("--tokens", type=int, default=20_000, help="of each text")
    parser.add_argument("--calibration-tokens", type=int, default=20_000, help="thresholds, compensators")
    parser.add_argument("--agreement-tokens", type=int, default=4_000, help="recall and precision")
    parser.add_argument("--densities", default=".7,.6,.5,.4,.3")
    parser.add_argument(
        "--at", nargs="*", default=[], metavar="NAME=DENSITIES", help="other densities of one selector"
    )
    parser.add_argument("--selectors", default="oracle,random,threshold,sketch2,sketch3,sketch4")
    parser.add_argument("--predictors", nargs="*", default=[], metavar="NAME=PLAN")
    parser.add_argument("--compensator", type=int, default=None, metavar="RANK")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def finished(path: Path) -> list[dict[str, Any]]:
    """Rows that are already there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one finished row."""
    row |= {"cpu": describe_machine().cpu, "date": time.strftime("%Y-%m-%d")}
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def wanted(args: argparse.Namespace) -> list[tuple[str, float]]:
    """Names and densities of all plans that are asked for. Raises `SystemExit` where --at names no selector."""
    names = [*filter(None, args.selectors.split(",")), *(p.split("=")[0] for p in args.predictors)]
    special = dict(entry.split("=", 1) for entry in args.at)
    if unknown := sorted(set(special) - set(names)):
        raise SystemExit(f"--at: no selector is called {', '.join(unknown)}; there are {', '.join(names)}")
    return [(name, float(k)) for name in names for k in special.get(name, args.densities).split(",")]


def label(args: argparse.Namespace, name: str) -> str:
    """With what stands in for the skipped."""
    return name if args.compensator is None else f"{name} + rank {args.compensator}"


class Plans:
    """Plans of some families at any density for one model, calibrated on the training part of a text."""

    def __init__(self, subject: Subject, args: argparse.Namespace, names: Sequence[str]) -> None:
        self.subject = subject
        self.args = args
        config = subject.opened.config
        self.layers = config.n_layers
        self.inputs = BlockInputs(config, subject.opened.weights)
        self.scores = Scores(config, subject.opened.weights, subject.codec, self.inputs)
        corpus = Corpus(args.calibration, seed=0)
        self.stream = TokenStream(corpus, subject.tokenizer, context=config.max_context)
        self.pieces = next(self.stream.batches(args.calibration_tokens))[0]
        families = [self.family(name) for name in dict.fromkeys(("oracle", *names)) if name != "random"]
        self.calibrations: dict[str, Calibration] = {
            c.family.name: c for c in calibrate(families, self.scores, self.traces(self.pieces))
        }

    def traces(self, pieces: Sequence[Any]) -> Iterator[Trace]:
        """Dense passes over pieces of text."""
        for piece in pieces:
            yield self.subject.executor.trace(piece, want=("mlp_input", "hidden", "gate"))

    def family(self, name: str) -> Family:
        """The selectors called `name`, uncalibrated: sketch3, sketch3+1 (look-ahead), values3, threshold, a predictor's."""
        files = dict(p.split("=", 1) for p in self.args.predictors)
        if name in files:
            plan = AccessPlan.load(Path(files[name]))
            found = tuple(layer.neurons for layer in plan.layers)
            if not all(isinstance(selector, LowRank | Products) for selector in found):
                raise SystemExit(f"{files[name]}: not every layer has a low-rank predictor of neurons")
            return Family(name, "neurons", found)  # type: ignore[arg-type]
        kind, _, lookahead = name.partition("+")
        selector: Any
        if kind.startswith("sketch"):
            selector = Sketch(
                bits=int(kind.removeprefix("sketch")), lookahead=int(lookahead or 0), density=1.0
            )
        elif kind.startswith("values"):
            selector = Sketch(bits=int(kind.removeprefix("values")), values="leading", density=1.0)
        else:
            selector = {"oracle": Oracle, "threshold": Threshold}[kind](density=1.0)
        return Family(name, "neurons", (selector,) * self.layers)

    def plan(self, name: str, density: float) -> AccessPlan:
        """The plan of a family at a mean density."""
        model = self.subject.fingerprint
        if name == "random":
            return AccessPlan.uniform(model, self.layers, neurons=Random(density=density))
        chosen = self.calibrations[name]
        layers = [LayerPlan(neurons=chosen.selector(i, density)) for i in range(self.layers)]
        if self.args.compensator is not None:
            fitted = fit_compensators(
                self.subject.opened,
                [layer.neurons for layer in layers],
                self.scores,
                self.inputs,
                self.traces(self.pieces),
                self.args.compensator,
            )
            layers = [dataclasses.replace(a, compensator=b) for a, b in zip(layers, fitted, strict=True)]
        return AccessPlan(model=model, layers=tuple(layers), name=f"{name} {density:g}")

    def agreement(self, plan: AccessPlan, density: float) -> dict[str, Any]:
        """Recall and precision against the neurons that the oracle takes at the same density, on held-out text."""
        labels = [self.calibrations["oracle"].threshold(i, density) for i in range(self.layers)]
        sets = SetEvidence(plan, self.scores, labels, [1.0] * self.layers)
        sets.add(self.traces(self.stream.validation(self.args.agreement_tokens)))
        return sets.whole("neurons")

    def touched(self, plan: AccessPlan, densities: Sequence[float]) -> dict[str, Any]:
        """Bytes that a token reads to choose, and those of the MLPs, all of it, over dense; {}: the oracle's."""
        selectors = [layer.neurons for layer in plan.layers]
        if any(isinstance(selector, Oracle) for selector in selectors):
            return {}
        cost = Cost(self.subject.opened.config, self.subject.codec, plan.leading or 4)
        mlps = sum(cost.neurons(i, s, k) for i, (s, k) in enumerate(zip(selectors, densities, strict=True)))
        stand_ins = sum(cost.compensator(c) for c in (layer.compensator for layer in plan.layers) if c)
        choosing = sum(cost.neurons(i, s, 0.0) for i, s in enumerate(selectors) if isinstance(s, Pick))
        dense = sum(cost.neurons(i, Dense(), 1.0) for i in range(self.layers))
        return {
            "selector_bytes": round(choosing),
            "mlp_bytes_share": (mlps + stand_ins) / dense,
        }


def quality(args: argparse.Namespace) -> None:
    """Perplexity ratios, densities as they came out, recall, precision and bytes."""
    done = {(row.get("selector"), row.get("density"), row.get("text")) for row in finished(args.out)}
    todo = [
        (name, density, left)
        for name, density in wanted(args)
        if (left := [path for path in args.text if (label(args, name), density, path.name) not in done])
    ]
    if not todo:
        return
    subject = open_subject(args.model, codec=args.codec, leading=4)
    executor: Any = subject.executor
    subjects = {4: subject}
    texts = {}
    for path in dict.fromkeys(path for *_, left in todo for path in left):
        documents = encode_documents(subject.tokenizer, read_documents(path), limit=args.tokens)
        texts[path] = documents, measure_perplexity(executor, documents)
    plans = Plans(subject, args, [name for name, *_ in todo])
    for name, density, left in todo:
        key = {"selector": label(args, name), "density": density}
        executor.set_plan(None)  # compensators and labels are of the dense model
        plan = plans.plan(name, density)
        known = [row for row in finished(args.out) if key.items() <= row.items() and "recall" in row]
        sets = {part: known[0][part] for part in ("recall", "precision")} if known else {}
        if not sets and name != "random":
            sets = plans.agreement(plan, density)
        suited = next(filter(plan.can_read, subjects), plan.leading)
        if suited not in subjects:
            subjects[suited] = open_subject(args.model, codec=args.codec, leading=suited)
        planned: Any = subjects[suited].executor
        for path in left:
            documents, base = texts[path]
            planned.set_plan(plan)
            found = measure_perplexity(planned, documents, path="masked")
            neurons = planned.last_stats["neurons"]
            row: dict[str, Any] = {**key, "text": path.name, "model": args.model, "codec": args.codec}
            row |= {
                "tokens": found.tokens,
                "ppl_ratio": found.ratio(base),
                "dense_ppl": base.perplexity,
                "measured_density": float(np.mean(neurons)),
            }
            append(args.out, row | sets | plans.touched(plan, neurons))
    for subject in subjects.values():
        subject.close()


def speed(args: argparse.Namespace) -> None:
    """Tokens/s of each plan, in turn with dense decoding; each on weights packed as it reads them."""
    done = {(row.get("selector"), row.get("density")) for row in finished(args.out) if "speedup" in row}
    todo = [
        (name, density)
        for name, density in wanted(args)
        if (label(args, name), density) not in done and name not in ("oracle", "random")
    ]
    if not todo:
        return
    subject = open_subject(args.model, codec=args.codec, leading=4)
    dense = open_subject(args.model, codec=args.codec, leading=0)
    plans = Plans(subject, args, [name for name, _ in todo])
    text = np.concatenate(plans.stream.validation(PREFIX + STEPS + 8))[: PREFIX + STEPS].astype(np.int32)
    for name, density in todo:
        plan = plans.plan(name, density)
        planned = open_subject(args.model, codec=args.codec, leading=plan.leading)
        executor: Any = planned.executor
        executor.set_plan(plan)
        pairs: list[tuple[float, float]] = []
        for repeat in range(args.repeats + 1):
            pair = (decode_seconds(dense.executor, text), decode_seconds(executor, text))
            if repeat:
                pairs.append(pair)
        stats = executor.last_stats
        planned.close()
        row = {
            "selector": label(args, name),
            "density": density,
            "model": args.model,
            "codec": args.codec,
            "dense_tokens_per_s": STEPS / statistics.median(a for a, _ in pairs),
            "tokens_per_s": STEPS / statistics.median(b for _, b in pairs),
            "speedup": statistics.median(a / b for a, b in pairs),
            "spread": float(np.subtract(*np.quantile([a / b for a, b in pairs], [0.75, 0.25]))) / 2,
            "measured_density": float(np.mean(stats["neurons"])),
            "choosing_ms": stats["ms"]["predicting"],
            "predictor_share": stats["predictor_share"],
        }
        append(args.out, row)
    subject.close()
    dense.close()


def decode_seconds(executor: Executor, text: np.ndarray) -> float:
    """Seconds for STEPS tokens of the text after its first PREFIX ones."""
    cache = executor.new_cache()
    executor.prefill(text[:PREFIX], cache)
    start = time.perf_counter()
    for token in text[PREFIX:]:
        executor.decode(np.array([token], np.int32), [cache])
    return time.perf_counter() - start


def table(args: argparse.Namespace) -> None:
    """All rows as Markdown."""
    rows = finished(args.out)
    texts = list(dict.fromkeys(row["text"] for row in rows if "text" in row))
    keys = list(dict.fromkeys((row["selector"], row["density"]) for row in rows))
    print("| selector | density | " + " | ".join(f"ppl ratio, {text}" for text in texts), end="")
    print(" | recall | precision | tokens/s over own dense |")
    print("|---|---|" + "---|" * (len(texts) + 3))
    for selector, density in keys:
        mine = [row for row in rows if (row["selector"], row["density"]) == (selector, density)]
        by_text = {row["text"]: row for row in mine if "text" in row}
        fast = next((row for row in mine if "speedup" in row), None)
        recall = next((row for row in mine if "recall" in row), None)
        cells = [f"{by_text[text]['ppl_ratio']:.3f}" if text in by_text else "" for text in texts]
        cells += [f"{recall['recall']:.2f}", f"{recall['precision']:.2f}"] if recall else ["", ""]
        cells += [f"{fast['speedup']:.2f} ± {fast['spread']:.2f}"] if fast else [""]
        print(f"| {selector} | {density:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
