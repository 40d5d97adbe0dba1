"""What each way of choosing neurons costs in quality and brings in speed: one table for one model.

    python benchmarks/selector_table.py quality --model smollm2 --text heldout.jsonl moby_dick.txt --out selectors.jsonl
    python benchmarks/selector_table.py speed --model smollm2 --out selectors.jsonl
    python benchmarks/selector_table.py table --out selectors.jsonl

`quality` measures the perplexity ratio to the dense model in the same codec (every token of the text selects for itself),
and recall and precision against the neurons that matter most; `speed` measures tokens/s of the same plans against the
model's own dense decoding, in turn. Each finished row is appended to the file, so that both can be interrupted and go on.
Thresholds are calibrated per layer on training text; `random` and the label take the same density. Low-rank predictors
come from plans written by `dejavu train` (--predictors NAME=PLAN).
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
from dejavu.plan import AccessPlan, LayerPlan, LowRank, Oracle, Random, Sketch, Threshold
from dejavu.texts import read_documents
from dejavu.training.calibrate import Calibration, Family, calibrate
from dejavu.training.compensator import fit_compensators
from dejavu.training.corpus import Corpus
from dejavu.training.evidence import SetEvidence
from dejavu.training.inputs import BlockInputs
from dejavu.training.scores import Scores
from dejavu.training.stream import TokenStream
from dejavu.training.subject import open_subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dejavu.executor import Executor, Trace
    from dejavu.training.subject import Subject

CALIBRATION_TOKENS = 20_000
AGREEMENT_TOKENS = 4_000
PREFIX = 256
STEPS = 24


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=("quality", "speed", "table"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--calibration", type=Path, nargs="*", default=[])
    parser.add_argument("--tokens", type=int, default=20_000, help="of each text")
    parser.add_argument("--densities", default=".7,.6,.5,.4,.3")
    parser.add_argument("--selectors", default="oracle,random,threshold,sketch2,sketch3,sketch4")
    parser.add_argument("--predictors", nargs="*", default=[], metavar="NAME=PLAN")
    parser.add_argument("--compensator", type=int, default=None, metavar="RANK")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    {"quality": quality, "speed": speed, "table": table}[args.part](args)


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


class Plans:
    """Plans of every family and density for one model, calibrated on the training part of a text."""

    def __init__(self, subject: Subject, args: argparse.Namespace) -> None:
        self.subject = subject
        self.args = args
        config = subject.opened.config
        self.layers = config.n_layers
        self.inputs = BlockInputs(config, subject.opened.weights)
        self.scores = Scores(config, subject.opened.weights, subject.codec, self.inputs)
        corpus = Corpus(args.calibration, seed=0)
        self.stream = TokenStream(corpus, subject.tokenizer, context=config.max_context)
        self.pieces = next(self.stream.batches(CALIBRATION_TOKENS))[0]
        families = [self.family(name) for name in ("oracle", *self.names) if name not in ("random",)]
        unique = {family.name: family for family in families}
        self.calibrations: dict[str, Calibration] = {
            c.family.name: c for c in calibrate(list(unique.values()), self.scores, self.traces(self.pieces))
        }

    @property
    def names(self) -> list[str]:
        """All selectors asked for."""
        return [
            *filter(None, self.args.selectors.split(",")),
            *(p.split("=")[0] for p in self.args.predictors),
        ]

    def traces(self, pieces: Sequence[Any]) -> Iterator[Trace]:
        """Dense passes over pieces of text."""
        for piece in pieces:
            yield self.subject.executor.trace(piece, want=("mlp_input", "hidden", "gate"))

    def family(self, name: str) -> Family:
        """The selectors called `name`, uncalibrated: sketch3, sketch3+1 (look-ahead), threshold, a predictor's name."""
        files = dict(p.split("=", 1) for p in self.args.predictors)
        if name in files:
            plan = AccessPlan.load(Path(files[name]))
            found = tuple(layer.neurons for layer in plan.layers)
            if not all(isinstance(selector, LowRank) for selector in found):
                raise SystemExit(f"{files[name]}: not every layer has a low-rank predictor of neurons")
            return Family(name, "neurons", found)  # type: ignore[arg-type]
        kind, _, lookahead = name.partition("+")
        selector: Any
        if kind.startswith("sketch"):
            selector = Sketch(
                bits=int(kind.removeprefix("sketch")), lookahead=int(lookahead or 0), density=1.0
            )
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

    def label(self, name: str) -> str:
        """With what stands in for the skipped."""
        return name if self.args.compensator is None else f"{name} + rank {self.args.compensator}"


def quality(args: argparse.Namespace) -> None:
    """Perplexity ratios, densities as they came out, recall and precision."""
    subject = open_subject(args.model, codec=args.codec, leading=4)
    plans = Plans(subject, args)
    executor: Any = subject.executor
    done = {(row.get("selector"), row.get("density"), row.get("text")) for row in finished(args.out)}
    held_out = plans.stream.validation(AGREEMENT_TOKENS)
    for path in args.text:
        documents = encode_documents(subject.tokenizer, read_documents(path), limit=args.tokens)
        executor.set_plan(None)
        base = measure_perplexity(executor, documents)
        for name in plans.names:
            for density in map(float, args.densities.split(",")):
                key = (plans.label(name), density, path.name)
                if key in done:
                    continue
                plan = plans.plan(name, density)
                executor.set_plan(plan)
                found = measure_perplexity(executor, documents, path="masked")
                stats = executor.last_stats
                row: dict[str, Any] = dict(zip(("selector", "density", "text"), key, strict=True))
                row |= {
                    "model": args.model,
                    "codec": args.codec,
                    "tokens": found.tokens,
                    "ppl_ratio": found.ratio(base),
                    "dense_ppl": base.perplexity,
                    "measured_density": float(np.mean(stats["neurons"])),
                }
                agreed = any(
                    "recall" in r and (r["selector"], r["density"]) == key[:2] for r in finished(args.out)
                )
                if name != "random" and not agreed:
                    labels = [plans.calibrations["oracle"].threshold(i, density) for i in range(plans.layers)]
                    sets = SetEvidence(plan, plans.scores, labels, [1.0] * plans.layers)
                    sets.add(plans.traces(held_out))
                    row |= sets.whole("neurons")
                append(args.out, row)
    subject.close()


def speed(args: argparse.Namespace) -> None:
    """Tokens/s of each plan, in turn with dense decoding of the model in its plain form."""
    subject = open_subject(args.model, codec=args.codec, leading=4)
    dense = open_subject(args.model, codec=args.codec, leading=0)
    plans = Plans(subject, args)
    done = {(row.get("selector"), row.get("density")) for row in finished(args.out) if "speedup" in row}
    text = np.concatenate(plans.stream.validation(PREFIX + STEPS + 8))[: PREFIX + STEPS].astype(np.int32)
    todo = [
        (name, density)
        for name in plans.names
        for density in map(float, args.densities.split(","))
        if (plans.label(name), density) not in done and name not in ("oracle", "random")
    ]
    for name, density in todo:
        executor: Any = subject.executor
        executor.set_plan(plans.plan(name, density))
        pairs: list[tuple[float, float]] = []
        for repeat in range(args.repeats + 1):
            pair = (decode_seconds(dense.executor, text), decode_seconds(executor, text))
            if repeat:
                pairs.append(pair)
        stats = executor.last_stats
        row = {
            "selector": plans.label(name),
            "density": density,
            "model": args.model,
            "codec": args.codec,
            "dense_tokens_per_s": STEPS / statistics.median(a for a, _ in pairs),
            "tokens_per_s": STEPS / statistics.median(b for _, b in pairs),
            "speedup": statistics.median(a / b for a, b in pairs),
            "spread": float(np.subtract(*np.quantile([a / b for a, b in pairs], [0.75, 0.25]))) / 2,
            "measured_density": float(np.mean(stats["neurons"])),
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
