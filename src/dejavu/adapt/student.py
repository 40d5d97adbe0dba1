"""`Student`: the masked model and its teacher, and one step of learning.

Weights are kept in float32 (masters) and used in the type of the products; gradients come in that type. Embedding, head
and norms are frozen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dejavu.adapt.divergence import Head, divergence
from dejavu.adapt.model import Decoder, is_linear, read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from dejavu.adapt.masks import PlanMasks
    from dejavu.adapt.model import Batch, Masks
    from dejavu.adapt.options import AdaptOptions
    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights

WARM_UP = 0.03
"""Share of the run in which the learning rate rises; from there it falls to zero along a cosine."""
ATTENTION = 0.3
"""Learning rate of the attention, as a share of the MLPs'."""
BETAS = (0.9, 0.98)
CLIP = 1.0
"""Most that the norm of the gradients may be; larger ones are scaled down."""

_ROWS = 64  # whose probabilities are in memory at a time
_MOMENTS = ("exp_avg", "exp_avg_sq")


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
        config: the model.
        weights: its tensors, of the teacher and of the student's beginning.
        options: how.
        dtype: of the products.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, options: AdaptOptions, dtype: torch.dtype
    ) -> None:
        self._options = options
        original = read_tensors(config, weights)
        self.masters = {name: t.clone() for name, t in original.items() if is_linear(name)}
        self._fixed = fixed = {name: t for name, t in original.items() if not is_linear(name)}
        taught = {name: original[name].to(dtype) for name in self.masters}
        # A copy even where the type is the same: gradients are the copy's.
        self._used = {n: t.to(dtype, copy=True).requires_grad_() for n, t in self.masters.items()}
        self.head = Head.of(config, fixed, dtype)
        self.teacher = Decoder(config, fixed | taught)
        self.decoder = Decoder(config, fixed | self._used)
        parts: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, master in self.masters.items():
            master.grad = torch.zeros_like(master)
            parts[name.split(".")[2] in ("q", "k", "v", "o")].append(master)
        groups = [
            {"params": parts[False], "share": 1.0},
            {"params": parts[True], "share": ATTENTION},
        ]
        self._adam = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, fused=True)
        self.steps = 0

    def step(self, batch: Batch, masks: PlanMasks, done: float) -> float:
        """Learn from a batch, `done` being the share of the run before it. Returns the divergence, nats per token.

        If that is not finite, the weights stay as they are.
        """
        streams: tuple[list[Tensor], list[Tensor]] | None = ([], []) if self._options.match_hidden else None
        with torch.no_grad():
            target = self.teacher(batch, None, streams and streams[0])  # [n, E]
        found = self.decoder(batch, masks, streams and streams[1])  # [n, E]
        loss = value = divergence(found, target, self.head, self._options.loss)
        if streams:
            loss = loss + self._options.match_hidden * _distance(*streams)
        loss.backward()  # type: ignore[no-untyped-call]
        if not math.isfinite(float(loss.detach())) or not self._take_gradients():
            return math.nan
        rate = self._options.learning_rate * schedule(done)
        for group in self._adam.param_groups:
            group["lr"] = rate * group["share"]
        self._adam.step()
        self._publish()
        self.steps += 1
        return float(value.detach())

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
            t, s = (self.head.log_probs(x[part]) for x in (target, hidden))  # [rows, V]
            divergence += float((t.exp() * (t - s)).sum(dtype=torch.float64))
            following = batch.tokens[part + 1, None]  # [rows, 1]
            dense -= float(t.gather(1, following).sum(dtype=torch.float64))
            masked -= float(s.gather(1, following).sum(dtype=torch.float64))
        return Losses(len(scored), dense, masked, divergence)

    def values(self) -> dict[str, NDArray[np.float32]]:
        """All tensors of the model as it is now."""
        return {name: tensor.numpy() for name, tensor in {**self._fixed, **self.masters}.items()}

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that `restore` needs."""
        found = {}
        for name, master in self.masters.items():
            state = self._adam.state[master]
            found[name] = master.numpy()
            for part in _MOMENTS:
                found[f"{name}.{part}"] = state[part].numpy()
        return found

    def restore(self, arrays: Mapping[str, NDArray[np.float32]], steps: int) -> None:
        """Go on from `arrays`, taken after `steps` steps."""
        for name, master in self.masters.items():
            master.copy_(torch.from_numpy(arrays[name]))
            moments = {part: torch.from_numpy(arrays[f"{name}.{part}"]) for part in _MOMENTS}
            self._adam.state[master] = {"step": torch.tensor(float(steps)), **moments}
        self._publish()
        self.steps = steps

    @torch.no_grad()
    def _take_gradients(self) -> bool:
        """Move the gradients to the masters, clipped. False: they are not finite."""
        grads = []
        for name, used in self._used.items():
            grad = self.masters[name].grad
            assert grad is not None  # noqa: S101
            assert used.grad is not None  # noqa: S101
            grad.copy_(used.grad)
            used.grad = None
            grads.append(grad)
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
        if norm > CLIP:
            torch._foreach_mul_(grads, CLIP / norm)
        return math.isfinite(norm)

    @torch.no_grad()
    def _publish(self) -> None:
        for name, used in self._used.items():
            used.copy_(self.masters[name])


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
