"""Training of low-rank predictors: all layers at once, on traces that are made on the way and never stored.

A predictor of a layer is ``z = b hidden(a y) + bias``, y the normed input at the chosen look-ahead distance. It learns
the labels of `labels.py` by binary cross-entropy in which active and inactive neurons weigh the same in sum:

    loss = mean over (token, neuron) of w * BCE(sigmoid(z), label),
    w = 1 / (2 p) for active and 1 / (2 (1 - p)) for inactive ones, p the share of active ones in the batch.

The gradient is written out: with e = w (sigmoid(z) - label) / size, it is e^T hidden for b, the sum of e for bias, and
((e b) * hidden')^T y for a. AdamW with a learning rate that falls to zero along a cosine.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dejavu.engine.core import chosen_isa
from dejavu.errors import InputError, NumericsError
from dejavu.plan import LowRank
from dejavu.reference.selection import low_rank_scores
from dejavu.training.agreement import Tally
from dejavu.training.checkpoint import load_checkpoint, save_checkpoint
from dejavu.training.labels import largest
from dejavu.training.missing import import_torch
from dejavu.training.progress import spread
from dejavu.training.stream import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.training.agreement import Agreement
    from dejavu.training.examples import Examples, Target
    from dejavu.training.inputs import Block
    from dejavu.training.stream import Piece, TokenStream

    Array = NDArray[np.float32]
    Mask = NDArray[np.bool_]

BATCH = 1024
"""Tokens of a step, at least."""
CHECKPOINT_STEPS = 64
VALIDATION_STEPS = 64
VALIDATION_TOKENS = 1024
FINAL_VALIDATION_TOKENS = 8192
MIN_TOKENS = 4 * BATCH
"""Shortest text that is trained on."""
WEIGHT_DECAY = 0.01

_LOSS_ROWS = 64
"""Tokens of a batch that the reported loss is taken over; the gradient needs no loss."""
_FAST_BF16 = ("amx", "avx512bf16")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class LowRankOptions:
    """How predictors are trained.

    Attributes:
        targets: neurons, heads or both, with rank and target density.
        tokens: how many are learned from; more than the text has means several times through it.
        seed: of the initial values; the order of the text is the stream's.
        hidden: the middle layer's activation.
        lookahead: distance of the input.
        learning_rate: at the start.
    """

    targets: tuple[Target, ...]
    tokens: int
    seed: int = 0
    hidden: Literal["linear", "relu"] = "linear"
    lookahead: int = 0
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class State:
    """Where the training stands."""

    tokens: int
    total: int
    tokens_per_s: float
    losses: tuple[float, ...]
    """Of each predictor: all layers of the first block, then of the next."""
    agreement: dict[Block, list[Agreement]]
    """Per layer, with labels of held-out text."""

    def __str__(self) -> str:
        sets = (
            f"{block} recall {spread([a.recall for a in layers])} precision {spread([a.precision for a in layers])}"
            for block, layers in self.agreement.items()
        )
        return f"{self.tokens_per_s:.0f} tokens/s, loss {spread(self.losses)}, " + ", ".join(sets)


@dataclass(frozen=True)
class Trained:
    """What `train_low_rank` returns: per target a predictor for each layer, and how well each does."""

    predictors: dict[Block, list[LowRank]]
    agreement: dict[Block, list[Agreement]]
    """With labels of held-out text, at the target density."""
    tokens: int


def train_low_rank(
    examples: Examples,
    stream: TokenStream,
    options: LowRankOptions,
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
        trainer = _Trainer(examples, options, arrays)
        tokens, position = int(state["tokens"]), Position(**state["position"])
    else:
        stream.require(min(options.tokens, MIN_TOKENS))
        trainer = _Trainer(examples, options, None)
        tokens, position = 0, Position()
    agreement: dict[Block, list[Agreement]] = {}  # as of the first step from here
    held_out = stream.validation(VALIDATION_TOKENS)
    clock = _Clock()
    for batch, after in _until(stream.batches(BATCH, position), options.tokens - tokens):
        losses = trainer.step(batch, tokens / options.tokens)
        if not all(map(math.isfinite, losses)):
            kept = f"; {checkpoint} holds the state before" if checkpoint.exists() else ""
            raise NumericsError(
                f"the loss is no longer finite after {tokens} tokens{kept}",
                fix="train with a smaller --learning-rate; check the weights with `dejavu info MODEL`",
            )
        tokens, position = tokens + sum(map(len, batch)), after
        if trainer.steps % VALIDATION_STEPS == 0 or not agreement:
            agreement = trainer.validate(held_out)
        if trainer.steps % CHECKPOINT_STEPS == 0 or tokens >= options.tokens:
            state = {
                "settings": settings,
                "tokens": tokens,
                "position": dataclasses.asdict(position),
            }
            save_checkpoint(checkpoint, trainer.arrays(), state)
        clock.add(sum(map(len, batch)))
        report(State(tokens, options.tokens, clock.rate, losses, agreement))
    agreement = trainer.validate(stream.validation(FINAL_VALIDATION_TOKENS))
    return Trained(trainer.predictors(), agreement, tokens)


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


class _Trainer:
    """The predictors of all layers in torch, with their optimiser."""

    def __init__(self, examples: Examples, options: LowRankOptions, arrays: dict[str, Array] | None) -> None:
        torch = self._torch = import_torch()
        self._examples = examples
        self._options = options
        self._type = torch.bfloat16 if chosen_isa() in _FAST_BF16 else torch.float32
        config = examples.config
        sizes: dict[Block, int] = {"neurons": config.base_neurons, "heads": config.n_heads}
        self._nets: dict[tuple[Block, int], list[Any]] = {}  # a [r, d], b [n, r], bias [n] in torch
        for number, target in enumerate(options.targets):
            n, r, d = sizes[target.block], target.rank, config.d_model
            for layer in range(config.n_layers):
                rng = np.random.default_rng([options.seed, number, layer])
                start = rng.standard_normal((r, d), np.float32) / np.float32(math.sqrt(d))
                net = (start, np.zeros((n, r), np.float32), np.zeros(n, np.float32))
                self._nets[target.block, layer] = [torch.from_numpy(array) for array in net]
        parameters = [p for net in self._nets.values() for p in net]
        self._adam = torch.optim.AdamW(
            parameters, lr=options.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.steps = 0
        if arrays is not None:
            self._restore(arrays)

    def step(self, batch: Sequence[Piece], done: float) -> tuple[float, ...]:
        """Learn from one batch, `done` being the share of the training before it. Returns the loss of each predictor."""
        losses = []
        for block, layer, y, label in self._examples.of(batch):
            y = y * self._examples.scales[block][layer]
            losses.append(self._gradients(self._nets[block, layer], y, label))
        if all(map(math.isfinite, losses)):  # otherwise the predictors stay as they are
            for group in self._adam.param_groups:
                group["lr"] = self._options.learning_rate * (1 + math.cos(math.pi * done)) / 2
            self._adam.step()
            self.steps += 1
        return tuple(losses)

    def _gradients(self, net: list[Any], y: Array, label: Mask) -> float:
        """Set the gradients of one predictor; the loss."""
        torch = self._torch
        a, b, bias = net
        x = torch.from_numpy(y).to(self._type)  # [t, d]
        truth = torch.from_numpy(label).to(self._type)  # [t, n]
        share = min(max(float(label.mean()), 1e-4), 1 - 1e-4)
        active, inactive = 0.5 / share, 0.5 / (1 - share)
        a_low, b_low = a.to(self._type), b.to(self._type)
        middle = x @ a_low.T  # [t, r]
        if self._options.hidden == "relu":
            middle = middle.relu_()
        z = torch.addmm(bias.to(self._type), middle, b_low.T)  # [t, n]
        sample, target = z[:_LOSS_ROWS].float(), truth[:_LOSS_ROWS].float()
        weights = inactive + (active - inactive) * target
        loss = torch.nn.functional.binary_cross_entropy_with_logits(sample, target, weights)
        error = z.sigmoid_().sub_(truth)  # [t, n]
        error.mul_(truth.mul_(active - inactive).add_(inactive)).div_(label.size)
        back = error @ b_low  # [t, r]
        if self._options.hidden == "relu":
            back = back * (middle > 0)
        a.grad = (back.T @ x).float()
        b.grad = (error.T @ middle).float()
        bias.grad = error.sum(dim=0, dtype=torch.float32)
        return float(loss + 0 * bias.grad.sum())  # a NaN of any row shows

    def predictors(self) -> dict[Block, list[LowRank]]:
        """As plans hold them, picking the target density: the inputs' scales are part of a."""
        found: dict[Block, list[LowRank]] = {}
        for target in self._options.targets:
            scales = self._examples.scales[target.block]
            for layer in range(self._examples.config.n_layers):
                a, b, bias = (p.numpy() for p in self._nets[target.block, layer])
                predictor = LowRank(
                    a=a * scales[layer],
                    b=b,
                    bias=bias,
                    hidden=self._options.hidden,
                    lookahead=self._options.lookahead,
                    density=target.density,
                )
                found.setdefault(target.block, []).append(predictor)
        return found

    def validate(self, pieces: Sequence[Piece]) -> dict[Block, list[Agreement]]:
        """Agreement of each predictor, rounded as plans store them, with the labels of `pieces`."""
        predictors = self.predictors()
        tallies = {block: [Tally() for _ in layers] for block, layers in predictors.items()}
        densities = {target.block: target.density for target in self._options.targets}
        for piece in pieces:
            for block, layer, y, label in self._examples.of([piece]):
                scores = low_rank_scores(predictors[block][layer], y)
                tallies[block][layer].add(largest(scores, densities[block]), label)
        return {block: [tally.agreement for tally in layers] for block, layers in tallies.items()}

    def arrays(self) -> dict[str, Array]:
        """All that `_restore` needs."""
        found: dict[str, Array] = {}
        for (block, layer), net in self._nets.items():
            for name, p in zip(("a", "b", "bias"), net, strict=True):
                key = f"layers.{layer}.{block}.{name}"
                state = self._adam.state[p]
                found[key] = p.numpy()
                found |= {f"{key}.{part}": state[part].numpy() for part in _MOMENTS}
        found["steps"] = np.array([self.steps], np.float32)
        return found

    def _restore(self, arrays: dict[str, Array]) -> None:
        torch = self._torch
        for (block, layer), net in self._nets.items():
            for name, p in zip(("a", "b", "bias"), net, strict=True):
                key = f"layers.{layer}.{block}.{name}"
                p.copy_(torch.from_numpy(arrays[key]))
                moments = {part: torch.from_numpy(arrays[f"{key}.{part}"]) for part in _MOMENTS}
                self._adam.state[p] = {"step": torch.tensor(float(arrays["steps"][0])), **moments}
        self.steps = int(arrays["steps"][0])
