"""`LabelLearner`: low-rank predictors learn which neurons and heads are active, as in Deja Vu (Liu et al., 2023).

A predictor of a layer is ``z = b hidden(a y) + bias``, y the normed input at the chosen look-ahead distance. It learns
the labels of `labels.py` by binary cross-entropy in which active and inactive neurons weigh the same in sum:

    loss = mean over (token, neuron) of w * BCE(sigmoid(z), label),
    w = 1 / (2 p) for active and 1 / (2 (1 - p)) for inactive ones, p the share of active ones in the batch.

The gradient is written out: with e = w (sigmoid(z) - label) / size, it is e^T hidden for b, the sum of e for bias, and
((e b) * hidden')^T y for a. AdamW with a learning rate that falls to zero along a cosine.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.engine.core import chosen_isa
from dejavu.plan import LowRank
from dejavu.training.missing import import_torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dejavu.training.examples import Examples
    from dejavu.training.inputs import Block
    from dejavu.training.learner import LowRankOptions, Predictor
    from dejavu.training.stream import Piece

    Array = NDArray[np.float32]
    Mask = NDArray[np.bool_]

WEIGHT_DECAY = 0.01

_LOSS_ROWS = 64
"""Tokens of a batch that the reported loss is taken over; the gradient needs no loss."""
_FAST_BF16 = ("amx", "avx512bf16")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class LabelLearner:
    """See `dejavu.training.learner.Learner`. The predictors of all layers in torch, with their optimiser."""

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
        """See `Learner.step`."""
        losses = []
        for block, layer, y, sizes in self._examples.of(batch):
            label = self._examples.label(block, layer, sizes)
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

    def predictors(self) -> dict[Block, list[Predictor]]:
        """See `Learner.predictors`: the inputs' scales are part of a."""
        found: dict[Block, list[Predictor]] = {}
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

    def arrays(self) -> dict[str, Array]:
        """See `Learner.arrays`."""
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
