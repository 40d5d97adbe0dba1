"""`Student`: the masked model and its teacher, and one step of learning.

Weights are kept in float32 (masters) and used in the type of the products; gradients come in that type. Embedding, head
and norms are frozen; with updates of low rank biases too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from dejavu.adapt.divergence import Head, divergence
from dejavu.adapt.leading import Held
from dejavu.adapt.low_rank_update import LowRankShare, first_factors
from dejavu.adapt.model import Decoder, is_linear, read_tensors
from dejavu.adapt.operations import column_major
from dejavu.adapt.share import Share
from dejavu.adapt.workers import Workers
from dejavu.models.tensors import tensor_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dejavu.adapt.model import Batch, Masks
    from dejavu.adapt.options import AdaptOptions
    from dejavu.codecs import Codec
    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights

WARM_UP = 0.03
"""Share of the run in which the learning rate rises; from there it falls to zero along a cosine."""
CLIP = 1.0
"""Most that the norm of the gradients may be; larger ones are scaled down."""

_ROWS = 64  # whose probabilities are in memory at a time


@dataclass(frozen=True)
class Losses:
    """Sums over `tokens` scored tokens, nats."""

    tokens: int
    dense: float
    """Negative log-likelihood by the dense original."""
    masked: float
    """By the student with masks."""
    divergence: float
    """Of the student from the original (forward KL)."""

    def __add__(self, other: Losses) -> Losses:
        return Losses(
            self.tokens + other.tokens,
            self.dense + other.dense,
            self.masked + other.masked,
            self.divergence + other.divergence,
        )


class Student:
    """Learns to predict as the teacher does, with masks.

    Args:
        config: the model that learns.
        weights: its tensors.
        options: how.
        dtype: of the products.
        threads: that work side by side, each on documents of its own.
        teacher: the model that is learned from, of the same shape; None: that which learns, as it is now.
        twin: what the model is to become, where that is not as it is: one of the same shape.
        leading: codec and number of the leading bits that weights are used by; all others are used as they are.
        start: the student's linears in the beginning, float32; those that are not in it are the model's, or zero.
    """

    objective = "KL"
    """What `step` returns."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        options: AdaptOptions,
        dtype: torch.dtype,
        threads: int = 1,
        *,
        teacher: tuple[ModelConfig, Weights] | None = None,
        twin: ModelConfig | None = None,
        leading: Mapping[str, tuple[Codec, int]] | None = None,
        start: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self._options = options
        self.workers = Workers(threads)
        original = read_tensors(config, weights)
        self._fixed = fixed = {name: t for name, t in original.items() if not is_linear(name)}
        known = original if teacher is None else read_tensors(*teacher)
        taught = {name: column_major(t.to(dtype)) if is_linear(name) else t for name, t in known.items()}
        self.masters = _beginning(twin or config, original, start or {})
        names = [
            n for n, t in self.masters.items() if self.learns(n) and (options.method == "full" or t.ndim == 2)
        ]
        # A copy even where the type is the same: gradients are the copy's.
        self._used = {n: t.to(dtype, copy=True).requires_grad_(n in names) for n, t in self.masters.items()}
        self._turned = {n: t.detach().T.contiguous() for n, t in self._used.items() if t.ndim == 2}
        self.head = Head.of(config, fixed, dtype)
        self.teacher_head = self.head if teacher is None else Head.of(teacher[0], taught, dtype)
        self.teacher = Decoder(config if teacher is None else teacher[0], taught)
        self.decoder = Decoder(twin or config, fixed | self._used, self._turned)
        self.held = {
            name: Held(codec, bits, self.masters[name], self._used[name].detach(), self._turned[name])
            for name, (codec, bits) in (leading or {}).items()
        }
        """Weights that are used as their leading bits say."""
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        share: Callable[..., Share] = Share
        if options.adapter is not None:
            rank, alpha = options.adapter
            originals = {name: original[name] for name in names}
            self._factors = first_factors(originals, rank, options.seed)
            share = partial(LowRankShare, originals=originals, factors=self._factors, scale=alpha / rank)
        self._shares = [
            share(names[i::threads], self.masters, self._used, self._turned, self.held)
            for i in range(threads)
        ]
        self.steps = 0

    @staticmethod
    def learns(name: str) -> bool:
        """Whether a linear changes: all do."""
        return True

    def step(self, batches: Sequence[Batch], passes: Sequence[Masks], pace: float) -> float:
        """Learn from `batches`, each under the masks of its pass, at the share `pace` of the highest learning rate.

        Returns:
            The divergence, nats per token. If it is not finite, the weights stay as they are.
        """
        tokens = sum(len(batch.tokens) for batch in batches)
        shares = [len(batch.tokens) / tokens for batch in batches]
        losses = self.workers.map(self._learn, batches, passes, shares)
        loss = sum(share * found for share, found in zip(shares, losses, strict=True))
        norm = math.sqrt(sum(self.workers.map(Share.take_gradients, self._shares)))
        if not math.isfinite(loss + norm):
            return math.nan
        rate, scale = self._options.learning_rate * pace, min(1.0, CLIP / max(norm, 1e-30))
        self.workers.map(lambda share: share.update(rate, scale), self._shares)
        self.steps += 1
        return loss

    def _learn(self, batch: Batch, masks: Masks, share: float) -> float:
        """Add the gradients of one batch, times `share`."""
        streams: tuple[list[Tensor], list[Tensor]] | None = ([], []) if self._options.match_hidden else None
        with torch.no_grad():
            target = self.teacher(batch, None, streams and streams[0])  # [n, E]
        found = self.decoder(batch, masks, streams and streams[1])  # [n, E]
        loss = value = divergence(found, target, self.head, self.teacher_head, self._options.loss)
        if streams:
            loss = loss + self._options.match_hidden * _distance(*streams)
        torch.autograd.backward(share * loss)
        return float(value.detach()) + 0 * float(loss.detach())  # a NaN of either shows

    @torch.no_grad()
    def run(self, batch: Batch, masks: Masks | None) -> Tensor:
        """What the head multiplies, [n, E]; None: of the teacher."""
        return self.teacher(batch) if masks is None else self.decoder(batch, masks)

    @torch.no_grad()
    def measure(self, batch: Batch, target: Tensor, masks: Masks) -> Losses:
        """What the masks do to the predictions; `target`: what `run` says of the teacher, [n, E]."""
        hidden = self.run(batch, masks)
        ends = np.cumsum(batch.lengths) - 1  # these predict nothing that is known
        scored = torch.from_numpy(np.setdiff1d(np.arange(len(hidden)), ends))
        dense = masked = divergence = 0.0
        for part in torch.split(scored, _ROWS):
            t = self.teacher_head.log_probs(target[part])  # [rows, V]
            s = self.head.log_probs(hidden[part])  # [rows, V]
            divergence += float((t.exp() * (t - s)).sum(dtype=torch.float64))
            following = batch.tokens[part + 1, None]  # [rows, 1]
            dense -= float(t.gather(1, following).sum(dtype=torch.float64))
            masked -= float(s.gather(1, following).sum(dtype=torch.float64))
        return Losses(len(scored), dense, masked, divergence)

    def values(self) -> dict[str, NDArray[np.float32]]:
        """All tensors of the model as it is now."""
        return {name: tensor.numpy() for name, tensor in {**self._fixed, **self.masters}.items()}

    def factors(self) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """A and B of the weights that change by updates of low rank; see `low_rank_update`."""
        return {name: (a.numpy(), b.numpy()) for name, (a, b) in self._factors.items()}

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that `restore` needs."""
        return {name: array for share in self._shares for name, array in share.arrays().items()}

    def restore(self, arrays: Mapping[str, NDArray[np.float32]], steps: int) -> None:
        """Go on from `arrays`, taken after `steps` steps."""
        for share in self._shares:
            share.restore(arrays, steps)
        self.steps = steps


def _beginning(
    config: ModelConfig, original: Mapping[str, Tensor], start: Mapping[str, NDArray[np.float32]]
) -> dict[str, Tensor]:
    """Linears of a student, float32, of their own memory."""
    found = {}
    for name, shape in tensor_shapes(config).items():
        if is_linear(name):
            known = torch.from_numpy(start[name]) if name in start else original.get(name)
            found[name] = torch.zeros(shape) if known is None else known.clone()
    return found


def schedule(done: float) -> float:
    """Factor on the learning rate at the share `done` of a run."""
    if done < WARM_UP:
        return (done + 1e-3) / (WARM_UP + 1e-3)
    return (1 + math.cos(math.pi * min(done, 1.0))) / 2


def _distance(theirs: list[Tensor], ours: list[Tensor]) -> Tensor:
    """Mean over layers and tokens of the squared distance, as a share of the teacher's squared length."""
    parts = [
        ((a - b).square().sum(dim=1) / a.square().sum(dim=1).clamp_min(1e-12)).mean()
        for a, b in zip(theirs, ours, strict=True)
    ]
    return torch.stack(parts).mean()
