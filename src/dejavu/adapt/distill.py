"""`distill`: the loop that teaches a model to predict as before while it runs only the neurons its masks let through."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dejavu.adapt.held_out import Measured, Validation, batches_of, mean
from dejavu.adapt.masks import MaskPass
from dejavu.adapt.model import Batch
from dejavu.adapt.student import schedule
from dejavu.errors import InputError, NumericsError
from dejavu.training.checkpoint import load_checkpoint, save_checkpoint
from dejavu.training.progress import spread
from dejavu.training.quantiles import Quantiles
from dejavu.training.stream import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from dejavu.adapt.masks import PlanMasks
    from dejavu.adapt.options import AdaptOptions
    from dejavu.adapt.student import Student
    from dejavu.plan import NeuronSelector
    from dejavu.training.stream import Piece, TokenStream

ANNEAL = 0.05
"""Share of a stage in which densities fall to their targets."""
EVALUATE_STEPS = 50
CHECKPOINT_STEPS = 100
VALIDATION_TOKENS = 4096
FINAL_VALIDATION_TOKENS = 16_384
SETTLE_TOKENS = 16_384
"""Text over which the final thresholds are taken."""
MIN_TOKENS = 2048
"""Shortest text that is learned from."""
FAR = 0.25
"""Divergence, nats, from which on a stage learns at the full rate. A smaller one takes the same share of it: the noise of
the steps costs in proportion to their rate, and there is less to be won."""
_SMOOTH = 0.05  # of the divergence that is reported


@dataclass(frozen=True)
class Point:
    """Where a run stood."""

    tokens: int
    seconds: float
    loss: float
    """On the text that is learned from, smoothed; nats per token."""
    divergence: float
    """Of the masked model from the dense original on held-out text: forward KL, nats per token."""
    ratio: float
    """Perplexity on held-out text, over that of the dense original."""
    density: float
    """Mean over layers."""
    recalls: tuple[float, ...]
    """Of each layer: the share that is chosen of as many neurons, those with the largest values."""


@dataclass(frozen=True)
class State:
    """Where a run stands, for its reader."""

    stage: str
    """Which of several; empty: there is one."""
    done: float
    """Share of the whole run."""
    tokens: int
    tokens_per_s: float
    objective: str
    """What the loss is."""
    loss: float
    densities: Sequence[float]
    held_out: Point

    def __str__(self) -> str:
        return (
            f"{self.stage}{self.tokens} tokens, {self.tokens_per_s:.0f}/s, {self.objective} {self.loss:.4f}, "
            f"density {spread(self.densities)}; held-out KL {self.held_out.divergence:.4f}, "
            f"ppl ratio {self.held_out.ratio:.4f}, recall {spread(self.held_out.recalls)}"
        )


@dataclass(frozen=True)
class Distilled:
    """What came of a stage; the weights are the student's."""

    stage: int
    """Its number, from 0."""
    curve: tuple[Point, ...]
    """The first one is before the stage, with the masks at its targets; the last one has the final thresholds."""
    final: Measured
    """On other held-out text."""
    turns: float
    """Times through the text."""
    gentler: tuple[tuple[NeuronSelector, ...], ...]
    """For each stage before, selectors with which these weights run at its densities."""


def distill(
    student: Student,
    masks: PlanMasks,
    stream: TokenStream,
    options: AdaptOptions,
    *,
    stages: Sequence[Sequence[float]],
    checkpoint: Path,
    resume: bool = False,
    settings: dict[str, Any],
    report: Callable[[State], None] = lambda _: None,
) -> Iterator[Distilled]:
    """Train `student` under `masks`, stage after stage, each for its share of the run: a low density needs longer.

    A stage begins with the weights of the one before and the densities that it ended at, and ends with weights that can be
    used: it has a learning rate of its own that rises and falls. The moments of the optimiser are carried over, since
    weights and loss are, and ten steps at a low rate renew the first of them.

    Args:
        student: learns.
        masks: on its weights.
        stream: the text.
        options: how long, and how.
        stages: of each, the density of every layer.
        checkpoint: file that is written every `CHECKPOINT_STEPS` steps and after each stage; remove it when the
            results are safe.
        resume: go on from `checkpoint`; begins with the stage that it is of. With `options.tokens` the result is that
            of a run that was not interrupted.
        settings: what must be equal for that; kept in the checkpoint.
        report: told of every step.

    Yields:
        What came of each stage. Seconds until the next one is asked for do not count.

    Raises:
        InputError: too little text, or a checkpoint that is missing, in the way, or of other settings.
        NumericsError: the divergence is no longer finite; the last checkpoint stays.
        CacheError: the checkpoint cannot be written.
    """
    if not resume:
        check_unused(checkpoint)
    stream.require(MIN_TOKENS)
    run = _Run(student, masks, stream, options, stages, checkpoint, settings)
    first = run.resume() if resume else 0
    for number in range(first, len(stages)):
        if not (resume and number == first):
            run.begin(number)
        run.learn(report)
        yield run.finish()


def check_unused(checkpoint: Path) -> None:
    """Raise `InputError` if there is a checkpoint already."""
    if checkpoint.exists():
        raise InputError(
            f"{checkpoint} is left of an interrupted run",
            fix="add --resume to go on with it, or delete it to start anew",
        )


@dataclass(frozen=True)
class _Stage:
    """A stage, and where the run stood when it began."""

    number: int
    steps: int
    tokens: int
    seconds: float


class _Run:
    def __init__(
        self,
        student: Student,
        masks: PlanMasks,
        stream: TokenStream,
        options: AdaptOptions,
        stages: Sequence[Sequence[float]],
        checkpoint: Path,
        settings: dict[str, Any],
    ) -> None:
        self._student = student
        self._masks = masks
        self._stream = stream
        self._options = options
        self._stages = stages
        self._shares = shares(stages)
        self._checkpoint = checkpoint
        self._settings = settings
        self._held_out = Validation(student, stream.validation(VALIDATION_TOKENS))
        self._tokens = 0
        self._position = Position()
        self._loss = 0.0
        self._spent = 0.0  # seconds, of the runs and stages before
        self._started = time.perf_counter()
        self._stage = _Stage(0, 0, 0, 0.0)
        self._curve: list[Point] = []

    def begin(self, number: int) -> None:
        """Begin a stage: note what its masks cost before anything is learned for them."""
        if number:
            self._started = time.perf_counter()
        self._stage = _Stage(number, self._student.steps, self._tokens, self._spent)
        self._aim()
        self._curve = []
        self._settle(self._options.batch_tokens)
        self._note()
        self._masks.restart()

    def resume(self) -> int:
        """Take up where the checkpoint was written. Returns the number of the stage."""
        arrays, state = load_checkpoint(self._checkpoint, self._settings)
        self._stage = _Stage(**state["stage"])
        self._aim()
        self._student.restore(arrays, state["steps"])
        self._masks.predictors.restore(arrays)
        self._tokens, self._position = state["tokens"], Position(**state["position"])
        self._loss, self._spent = state["loss"], state["seconds"]
        self._masks.thresholds = state["thresholds"]
        self._curve = [Point(**point | {"recalls": tuple(point["recalls"])}) for point in state["curve"]]
        self._masks.refresh_all()
        return self._stage.number

    def learn(self, report: Callable[[State], None]) -> None:
        """Take the steps of the stage that are left, at least one in all."""
        student, masks, stage = self._student, self._masks, self._stage
        several = f"stage {stage.number + 1} of {len(self._stages)}, " if len(self._stages) > 1 else ""
        pace = min(self._curve[0].divergence / FAR, 1.0)
        learned, began = 0, time.perf_counter()
        for pieces, after in self._stream.batches(self._options.batch_tokens, self._position):
            done = self._done
            if done >= 1 and student.steps > stage.steps:
                break
            batches = _dealt(pieces, student.workers.count)
            annealed = min(done / ANNEAL, 1.0)
            passes = [MaskPass(masks, annealed=annealed, learning=True) for _ in batches]
            rate = pace * schedule(done)
            loss = student.step(batches, passes, rate)
            if not math.isfinite(loss):
                kept = f"; {self._checkpoint} holds the state before" if self._checkpoint.exists() else ""
                raise NumericsError(
                    f"the divergence is no longer finite after {self._tokens} tokens{kept}",
                    fix="adapt with a smaller --learning-rate; check the weights with `dejavu info MODEL`",
                )
            first = student.steps == stage.steps + 1
            self._loss += (1.0 if first else _SMOOTH) * (loss - self._loss)
            seen = sum(map(len, pieces))
            self._tokens, self._position, learned = self._tokens + seen, after, learned + seen
            masks.follow(passes)
            masks.predictors.learn([p.gradients for p in passes], rate)
            masks.refresh(student.steps % len(masks.selectors))
            if student.steps % EVALUATE_STEPS == 0:
                self._note()
            if student.steps % CHECKPOINT_STEPS == 0:
                self._save()
            speed = learned / (time.perf_counter() - began)
            report(
                State(
                    several,
                    sum(self._shares[: stage.number]) + min(self._done, 1.0) * self._shares[stage.number],
                    self._tokens,
                    speed,
                    student.objective,
                    self._loss,
                    mean([p.densities for p in passes]),
                    self._curve[-1],
                )
            )
        if learned:
            self._save()

    def finish(self) -> Distilled:
        """Settle the thresholds for the final weights, and measure on more text."""
        self._settle(SETTLE_TOKENS)
        self._note()
        pieces = self._stream.validation(FINAL_VALIDATION_TOKENS, skip=VALIDATION_TOKENS)
        last = Validation(self._student, pieces) if pieces else self._held_out
        final = last.measure(self._masks)
        gentler = self._gentler()
        self._spent = self._seconds
        turns = self._stream.turns(self._position)
        return Distilled(self._stage.number, tuple(self._curve), final, turns, gentler)

    def _gentler(self) -> tuple[tuple[NeuronSelector, ...], ...]:
        masks, own, found = self._masks, self._masks.thresholds, []
        for densities in self._stages[: self._stage.number]:
            masks.aim(densities, start=masks.starts)
            self._settle(SETTLE_TOKENS)
            found.append(masks.deployed())
        self._aim()
        masks.thresholds = own
        return tuple(found)

    def _aim(self) -> None:
        number = self._stage.number
        start = self._stages[number - 1] if number else (1.0,) * len(self._stages[0])
        self._masks.aim(self._stages[number], start=start)

    def _settle(self, tokens: int) -> None:
        masks, student, at_once = self._masks, self._student, self._student.workers.count
        masks.refresh_all()
        masks.restart()
        scores = [Quantiles() for _ in masks.selectors]
        batches = list(batches_of(next(self._stream.batches(tokens))[0]))
        for first in range(0, len(batches), at_once):
            some = batches[first : first + at_once]
            seen = [[Quantiles() for _ in scores] for _ in some]
            student.workers.map(student.run, some, [MaskPass(masks, collect=found) for found in seen])
            for layer, total in enumerate(scores):
                for found in seen:
                    total.merge(found[layer])
                masks.settle(layer, total)

    def _note(self) -> None:
        found = self._held_out.measure(self._masks)
        density = sum(found.densities) / len(found.densities)
        self._curve.append(
            Point(
                self._tokens,
                self._seconds,
                self._loss,
                found.divergence,
                found.ratio,
                density,
                found.recalls,
            )
        )

    def _save(self) -> None:
        self._masks.refresh_all()  # as a run that resumes has to
        state = {
            "settings": self._settings,
            "stage": dataclasses.asdict(self._stage),
            "steps": self._student.steps,
            "tokens": self._tokens,
            "position": dataclasses.asdict(self._position),
            "loss": self._loss,
            "seconds": self._seconds,
            "thresholds": self._masks.thresholds,
            "curve": [dataclasses.asdict(point) for point in self._curve],
        }
        arrays = self._student.arrays() | self._masks.predictors.arrays()
        save_checkpoint(self._checkpoint, arrays, state)

    @property
    def _seconds(self) -> float:
        return self._spent + time.perf_counter() - self._started

    @property
    def _done(self) -> float:
        """Share of the stage."""
        stage, share = self._stage, self._shares[self._stage.number]
        if self._options.tokens is not None:
            return (self._tokens - stage.tokens) / (share * self._options.tokens)
        return (self._seconds - stage.seconds) / (share * 3600 * (self._options.hours or 1.0))


def shares(stages: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Of a run, that of each stage: in inverse proportion to its mean density. They add up to 1."""
    parts = [len(densities) / sum(densities) for densities in stages]
    return tuple(part / sum(parts) for part in parts)


def _dealt(pieces: Sequence[Piece], parts: int) -> list[Batch]:
    """Pieces as up to `parts` batches of about the same size."""
    dealt: list[list[Piece]] = [[] for _ in range(parts)]
    for piece in sorted(pieces, key=len, reverse=True):
        min(dealt, key=lambda part: sum(map(len, part))).append(piece)
    return [Batch.of(part) for part in dealt if part]
