"""`Regressor`: the MLPs of a twin learn, each by itself, to give what the teacher's give for the same inputs.

All layers learn in one forward pass of the teacher: no gradient leaves its layer, and no logits are made. That mends most
of what another activation breaks in little time; the rest has to be learned end to end.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from dejavu.adapt.student import Student

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from dejavu.adapt.distill import Point
    from dejavu.adapt.model import Batch, Block, Decoder, Masks
    from dejavu.adapt.options import AdaptOptions

SHARE = 0.2
"""Of the run, before the rest of it goes end to end."""
RATE = 4.0
"""Learning rate, as a share of that of the rest."""


def split(options: AdaptOptions) -> tuple[AdaptOptions, AdaptOptions]:
    """Options of the regression, and of what comes after it."""
    hours, tokens = options.hours, options.tokens
    if tokens is not None:
        first = max(round(SHARE * tokens), 1)
        parts: list[dict[str, Any]] = [{"tokens": first}, {"tokens": max(tokens - first, 1)}]
    else:
        assert hours is not None  # noqa: S101
        parts = [{"hours": SHARE * hours}, {"hours": (1 - SHARE) * hours}]
    parts[0]["learning_rate"] = RATE * options.learning_rate
    return dataclasses.replace(options, **parts[0]), dataclasses.replace(options, **parts[1])


def first_checkpoint(checkpoint: Path) -> Path:
    """Where the regression of a run is kept, whose other stages are kept in `checkpoint`."""
    return checkpoint.with_suffix(".regression.checkpoint")


def joined(first: Sequence[Point], rest: Sequence[Point], *, whole: bool) -> tuple[Point, ...]:
    """The curve `rest` after the tokens and seconds of `first`; `whole`: with `first` before it."""
    end = first[-1]
    moved = (
        dataclasses.replace(point, tokens=end.tokens + point.tokens, seconds=end.seconds + point.seconds)
        for point in rest
    )
    return (*(first if whole else ()), *moved)


class Regressor(Student):
    """A student that is compared with its teacher MLP by MLP; the attention stays as it is."""

    objective = "MLP error"

    @staticmethod
    def learns(name: str) -> bool:
        """Whether a linear changes: those of the MLPs do."""
        return name.split(".")[2] in ("gate", "up", "down")

    def _learn(self, batch: Batch, masks: Masks, share: float) -> float:
        comparison = _Comparison(self.decoder, masks, share / self.decoder.config.n_layers)
        with torch.no_grad():
            self.teacher(batch, comparison)
        return comparison.error / self.decoder.config.n_layers


class _Comparison:
    """`dejavu.adapt.model.Masks` of the teacher: all of its neurons run, and the student learns from what they give."""

    def __init__(self, student: Decoder, masks: Masks, weight: float) -> None:
        self._student = student
        self._masks = masks
        self._weight = weight
        self.error = 0.0
        """Sum over layers of `relative_error`."""

    def __call__(self, layer: int, block: Block) -> Tensor:
        hidden = block.hidden()
        wanted = block.decoder.linear(f"layers.{layer}.down", hidden)  # [n, d]
        with torch.enable_grad():
            found = self._student.mlp(layer, block.y, block.inputs, self._masks)  # [n, d]
            error = relative_error(found.float(), wanted.float())
            torch.autograd.backward(self._weight * error)
        self.error += float(error.detach())
        return hidden


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance as a share of the squared size of `wanted` [n, d], over all tokens together.

    So the few tokens with huge outputs, which all others attend to, count for most.
    """
    return (found - wanted).square().sum() / wanted.square().sum()
