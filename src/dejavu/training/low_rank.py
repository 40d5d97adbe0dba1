"""`train_low_rank`: low-rank predictors of all layers at once, on traces that are made on the way and never stored."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dejavu.errors import InputError, NumericsError
from dejavu.plan import Products
from dejavu.reference.selection import low_rank_scores, products_scores
from dejavu.training.agreement import Tally
from dejavu.training.checkpoint import load_checkpoint, save_checkpoint
from dejavu.training.label_learner import LabelLearner
from dejavu.training.labels import largest
from dejavu.training.progress import spread
from dejavu.training.size_learner import SizeLearner
from dejavu.training.stream import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from dejavu.models.weights import Weights
    from dejavu.training.agreement import Agreement
    from dejavu.training.examples import Examples
    from dejavu.training.inputs import Block
    from dejavu.training.learner import Learner, LowRankOptions, Predictor
    from dejavu.training.stream import Piece, TokenStream

BATCH = 1024
"""Tokens of a step, at least."""
CHECKPOINT_STEPS = 64
VALIDATION_STEPS = 64
VALIDATION_TOKENS = 1024
FINAL_VALIDATION_TOKENS = 8192
MIN_TOKENS = 4 * BATCH
"""Shortest text that is trained on."""


@dataclass(frozen=True)
class State:
    """Where the training stands."""

    tokens: int
    total: int
    tokens_per_s: float
    losses: tuple[float, ...]
    """Of each predictor: all layers of the first block, then of the next."""
    agreement: dict[Block, list[Agreement]]
    """Per layer, with labels of held-out text; empty: not known yet."""

    def __str__(self) -> str:
        sets = (
            f"{block} recall {spread([a.recall for a in layers])} precision {spread([a.precision for a in layers])}"
            for block, layers in self.agreement.items()
        )
        return ", ".join([f"{self.tokens_per_s:.0f} tokens/s, loss {spread(self.losses)}", *sets])


@dataclass(frozen=True)
class Trained:
    """What `train_low_rank` returns: per target a predictor for each layer, and how well each does."""

    predictors: dict[Block, list[Predictor]]
    agreement: dict[Block, list[Agreement]]
    """With labels of held-out text, at the target density."""
    tokens: int


def train_low_rank(
    examples: Examples,
    stream: TokenStream,
    options: LowRankOptions,
    weights: Weights,
    *,
    checkpoint: Path,
    resume: bool = False,
    settings: dict[str, Any],
    report: Callable[[State], None] = lambda _: None,
) -> Trained:
    """Train predictors for all layers.

    Args:
        examples: makes inputs and labels of pieces of text.
        stream: the text.
        options: how.
        weights: the model's own tensors.
        checkpoint: file that is written every `CHECKPOINT_STEPS` steps and at the end; remove it when the result is safe.
        resume: go on from `checkpoint`; the result is the same as without the interruption.
        settings: what must be equal for that; kept in the checkpoint.
        report: told of every step.

    Raises:
        InputError: too little text, or a checkpoint that is missing, in the way, or of other settings.
        NumericsError: the loss is no longer finite; the last checkpoint stays.
        CacheError: the checkpoint cannot be written.
        DejavuError: torch is not installed.
    """
    if not resume and checkpoint.exists():
        raise InputError(
            f"{checkpoint} is left of an interrupted training",
            fix="add --resume to go on with it, or delete it to start anew",
        )
    settings = {**settings, "options": _plain(options)}
    if resume:
        arrays, state = load_checkpoint(checkpoint, settings)
        learner = _learner(examples, options, weights, arrays)
        tokens, position = int(state["tokens"]), Position(**state["position"])
    else:
        stream.require(min(options.tokens, MIN_TOKENS))
        learner = _learner(examples, options, weights, None)
        tokens, position = 0, Position()
    agreement: dict[Block, list[Agreement]] = {}  # as of the first step from here
    held_out = stream.validation(VALIDATION_TOKENS)
    clock = _Clock()
    for batch, after in _until(stream.batches(BATCH, position), options.tokens - tokens):
        losses = learner.step(batch, tokens / options.tokens)
        if not all(map(math.isfinite, losses)):
            kept = f"; {checkpoint} holds the state before" if checkpoint.exists() else ""
            raise NumericsError(
                f"the loss is no longer finite after {tokens} tokens{kept}",
                fix="check the weights with `dejavu info MODEL`"
                + ("; train with a smaller --learning-rate" if options.learn == "labels" else ""),
            )
        tokens, position = tokens + sum(map(len, batch)), after
        if _due(options, learner.steps) or (options.learn == "labels" and not agreement):
            agreement = _validate(examples, options, learner.predictors(), held_out)
        if learner.steps % CHECKPOINT_STEPS == 0 or tokens >= options.tokens:
            state = {
                "settings": settings,
                "tokens": tokens,
                "position": dataclasses.asdict(position),
            }
            save_checkpoint(checkpoint, learner.arrays(), state)
        clock.add(sum(map(len, batch)))
        report(State(tokens, options.tokens, clock.rate, losses, agreement))
    predictors = learner.predictors()
    agreement = _validate(examples, options, predictors, stream.validation(FINAL_VALIDATION_TOKENS))
    return Trained(predictors, agreement, tokens)


def _due(options: LowRankOptions, steps: int) -> bool:
    """Whether to validate. Predictors of sizes have to be solved for, which takes minutes where a model is wide."""
    times, left = divmod(steps, VALIDATION_STEPS)
    return left == 0 and (options.learn == "labels" or times.bit_count() == 1)


def _learner(
    examples: Examples, options: LowRankOptions, weights: Weights, arrays: dict[str, Any] | None
) -> Learner:
    if options.learn == "sizes":
        return SizeLearner(examples, options, weights, arrays)
    return LabelLearner(examples, options, arrays)


def _validate(
    examples: Examples,
    options: LowRankOptions,
    predictors: dict[Block, list[Predictor]],
    pieces: Sequence[Piece],
) -> dict[Block, list[Agreement]]:
    """Agreement of each predictor, rounded as plans store them, with the labels of `pieces`."""
    tallies = {block: [Tally() for _ in layers] for block, layers in predictors.items()}
    densities = {target.block: target.density for target in options.targets}
    for piece in pieces:
        for block, layer, y, sizes in examples.of([piece]):
            predictor = predictors[block][layer]
            if isinstance(predictor, Products):
                scores = products_scores(predictor, y, examples.config)
            else:
                scores = low_rank_scores(predictor, y)
            label = examples.label(block, layer, sizes)
            tallies[block][layer].add(largest(scores, densities[block]), label)
    return {block: [tally.agreement for tally in layers] for block, layers in tallies.items()}


def _until(
    batches: Iterator[tuple[list[Piece], Position]], tokens: int
) -> Iterator[tuple[list[Piece], Position]]:
    while tokens > 0:
        batch, position = next(batches)
        yield batch, position
        tokens -= sum(map(len, batch))


class _Clock:
    """Tokens per second since the start."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._tokens = 0

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    @property
    def rate(self) -> float:
        return self._tokens / max(time.perf_counter() - self._start, 1e-9)


def _plain(options: LowRankOptions) -> dict[str, Any]:
    """As JSON gives it back."""
    return {**dataclasses.asdict(options), "targets": [list(dataclasses.astuple(t)) for t in options.targets]}
