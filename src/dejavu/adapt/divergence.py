"""The loss: how far the student's next-token distribution is from the teacher's, and its gradient in closed form.

With log-probabilities s (student) and t (teacher) over the vocabulary and p = exp(t), q = exp(s), per token:

    forward KL = sum p (t - s),    its gradient by the student's logits: q - p
    reverse KL = sum q (s - t),    its gradient: q (s - t - reverse KL)

and "mixed" the mean of both. Logits are made for a few tokens at a time and never kept: V is large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional as nn

if TYPE_CHECKING:
    from torch import Tensor

    from dejavu.adapt.model import Tensors
    from dejavu.models.config import ModelConfig

Loss = Literal["forward-kl", "reverse-kl", "mixed"]

ROWS = 64
"""Tokens whose logits are in memory at a time."""


@dataclass(frozen=True)
class Head:
    """The output head, frozen."""

    weight: Tensor
    """[V, E], in the type of the products."""
    bias: Tensor | None
    """[V]"""
    cap: float
    """Softcap of the logits; 0: none."""

    @classmethod
    def of(cls, config: ModelConfig, tensors: Tensors, dtype: torch.dtype) -> Head:
        """That of a model."""
        weight = tensors["embed.weight" if config.tied_head else "head.weight"].to(dtype)
        bias = tensors["head.bias"].to(dtype) if "head" in config.biases else None
        return cls(weight, bias, config.logit_softcap)

    def log_probs(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[n, E] -> log softmax, float32 [n, V]; and with a softcap its derivative by the logits [n, V]."""
        logits = nn.linear(x.to(self.weight.dtype), self.weight, self.bias).float()
        if not self.cap:
            return torch.log_softmax(logits, dim=-1), None
        bent = torch.tanh(logits / self.cap)
        return torch.log_softmax(self.cap * bent, dim=-1), 1 - bent.square()


def divergence(student: Tensor, teacher: Tensor, head: Head, loss: Loss) -> Tensor:
    """Mean over tokens, nats. `student` and `teacher`: what the head multiplies, [n, E]; only `student` gets a gradient."""
    value: Tensor = _Divergence.apply(student, teacher, head, loss)  # type: ignore[no-untyped-call]
    return value


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, head: Head, loss: Loss) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        slopes = []
        for ours, theirs in zip(torch.split(student, ROWS), torch.split(teacher, ROWS), strict=True):
            t, _ = head.log_probs(theirs)  # [rows, V]
            s, bend = head.log_probs(ours)  # [rows, V]
            q = s.exp()
            t.sub_(s)  # t - s
            share = 0.5 if loss == "mixed" else 1.0
            slope = torch.zeros_like(q) if loss == "mixed" else q
            if loss != "reverse-kl":
                p = (t + s).exp_()
                total += share * (p * t).sum(dtype=torch.float64)
                slope = (q - p).mul_(share)
            if loss != "forward-kl":
                each = -(q * t).sum(dim=-1, keepdim=True)  # [rows, 1]
                total += share * each.sum(dtype=torch.float64)
                back = q * (-t - each) * share
                slope = slope + back if loss == "mixed" else back
            if bend is not None:
                slope = slope * bend
            slopes.append((slope.to(head.weight.dtype) @ head.weight).float())
        ctx.save_for_backward(torch.cat(slopes).div_(len(student)))
        return (total / len(student)).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0], None, None, None
