"""What masks cost a model that was not trained for them: sketches of several bits, and other ways to choose neurons.

    python benchmarks/mask_variants.py MODEL --text calibration.jsonl --densities 0.25 0.13 --bits 3 4

Every variant has one threshold per layer, set on text that it is not measured on. A line per density, bits and variant:

    uniform   the same density in every layer: what `dejavu adapt --density` starts from
    down      the score of a neuron is multiplied by the length of its down row
    stream    one threshold for all layers, in units of the median length of a layer's residual stream
    token     thresholds of a token are multiplied by the square root of the length of its residual stream

`bytes` are those of the MLPs over dense int8, without scales: (2 b + d (2 (8 - b) + 8)) / 24 with b bits at density d.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dejavu.adapt.distill import SETTLE_TOKENS
from dejavu.adapt.held_out import Measured, Validation, batches_of
from dejavu.adapt.masks import MaskPass, PlanMasks
from dejavu.adapt.options import AdaptOptions
from dejavu.adapt.student import Student
from dejavu.engine.native import default_threads
from dejavu.models.loading import open_model
from dejavu.models.sources import resolve
from dejavu.plan import Sketch
from dejavu.tokenizer import Tokenizer
from dejavu.training.corpus import Corpus
from dejavu.training.quantiles import Quantiles
from dejavu.training.stream import TokenStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dejavu.adapt.model import Block

VARIANTS = ("uniform", "down", "stream", "token")


class TokenMasks(PlanMasks):
    """Thresholds of a token are multiplied by the square root of the length of its residual stream."""

    def scores(self, layer: int, block: Block) -> torch.Tensor:
        """See `PlanMasks`."""
        length = block.inputs[layer].float().norm(dim=1, keepdim=True)  # [n, 1]
        return (super().scores(layer, block) / length.sqrt()).to(self._dtype)


class Bench:
    """A model that is not changed, but for scales that cancel."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.opened = open_model(resolve(args.model))
        self.config = self.opened.config
        corpus = Corpus(args.text, seed=0)
        tokenizer = Tokenizer.from_model(self.opened)
        self.stream = TokenStream(corpus, tokenizer, context=self.config.max_context)
        self.options = AdaptOptions(density=0.5, tokens=1)
        self.calibration = list(batches_of(next(self.stream.batches(SETTLE_TOKENS))[0]))
        self.students = {"plain": self.student({}), "down": self.student(self.balanced())}
        held_out = self.stream.validation(args.tokens)
        self.validations = {name: Validation(student, held_out) for name, student in self.students.items()}

    def student(self, start: dict[str, Any]) -> Student:
        """The model, with other linears where `start` has them."""
        config, weights, threads = self.config, self.opened.weights, default_threads()
        return Student(config, weights, self.options, torch.bfloat16, threads, start=start)

    def balanced(self) -> dict[str, Any]:
        """The same function with down rows of length 1: neurons' values have their lengths instead."""
        found = {}
        for layer in range(self.config.n_layers):
            up, down = (f"layers.{layer}.{part}.weight" for part in ("up", "down"))
            values = self.opened.weights.read(down)  # [d, f]
            length = np.linalg.norm(values, axis=0)
            found[up] = self.opened.weights.read(up) * length[:, None]
            found[down] = values / np.maximum(length, 1e-12)
        return found

    def lengths(self) -> list[float]:
        """Of each layer, the median length of the residual stream."""
        student, streams = self.students["plain"], []
        with torch.no_grad():
            student.decoder(self.calibration[0], None, streams)
        return [float(x.float().norm(dim=1).median()) for x in streams]

    def measure(self, variant: str, bits: int, density: float) -> Measured:
        """Set the thresholds of a variant, and run it over held-out text."""
        name = "down" if variant in ("down", "stream") else "plain"
        student, layers = self.students[name], self.config.n_layers
        kind = TokenMasks if variant == "token" else PlanMasks
        masks = kind(
            self.config,
            (Sketch(bits=bits, threshold=0.0),) * layers,
            (density,) * layers,
            codec="int8",
            masters=student.masters,
            dtype=torch.bfloat16,
            threads=default_threads(),
        )
        scores = self.settle(student, masks)
        if variant == "stream":
            masks.aim(allotted(scores, self.lengths(), density), start=masks.starts)
            self.settle(student, masks)
        return self.validations[name].measure(masks)

    def settle(self, student: Student, masks: PlanMasks) -> list[Quantiles]:
        """Set thresholds, layer after layer; returns the scores that they were set by."""
        masks.restart()
        found = [Quantiles() for _ in masks.selectors]
        for batch in self.calibration:
            seen = [Quantiles() for _ in found]
            student.run(batch, MaskPass(masks, collect=seen))
            for layer, (total, part) in enumerate(zip(found, seen, strict=True)):
                total.merge(part)
                masks.settle(layer, total)
        return found


def allotted(scores: Sequence[Quantiles], lengths: Sequence[float], density: float) -> list[float]:
    """Densities of layers with the mean `density` that one threshold, in units of `lengths`, gives."""
    grid = np.linspace(0.001, 0.999, 999)
    thresholds = [np.array([q.threshold(d) for d in grid]) / n for q, n in zip(scores, lengths, strict=True)]
    low, high = 0.0, max(float(t[0]) for t in thresholds)
    found: list[float] = []
    for _ in range(50):
        middle = (low + high) / 2
        found = [float(np.interp(-middle, -t, grid)) for t in thresholds]  # thresholds fall with density
        low, high = (middle, high) if statistics.fmean(found) > density else (low, middle)
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.25])
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--tokens", type=int, default=8192, help="held-out text")
    args = parser.parse_args()
    bench = Bench(args)
    for density in args.densities:
        for bits in args.bits:
            for variant in args.variants:
                found = bench.measure(variant, bits, density)
                ran = statistics.fmean(found.densities)
                line = {
                    "variant": variant,
                    "bits": bits,
                    "density": ran,
                    "bytes": (2 * bits + ran * (2 * (8 - bits) + 8)) / 24,
                    "ppl_ratio": found.ratio,
                    "divergence": found.divergence,
                    "recall": statistics.fmean(found.recalls),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
