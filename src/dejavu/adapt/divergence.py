"""The loss: how far the student's next-token distribution is from the teacher's, and its gradient in closed form.

With log-probabilities s (student) and t (teacher) over the vocabulary and p = exp(t), q = exp(s), per token:

    forward KL = sum p (t - s),    its gradient by the student's logits: q - p
    reverse KL = sum q (s - t),    its gradient: q (s - t - reverse KL)

and "mixed" the mean of both. Logits are made for a few tokens at a time and never kept: V is large.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal

import torch

from dejavu.adapt.operations import divergence_slope

if TYPE_CHECKING:
    from torch import Tensor

    from dejavu.adapt.model import Tensors
    from dejavu.models.config import ModelConfig

Loss = Literal["forward-kl", "reverse-kl", "mixed"]

ROWS = 512
"""Tokens whose logits are in memory at a time."""
_CACHED = 1 << 18
"""Logits that are compared at a time, so that what is between stays in the cache."""


class Head:
    """The output head, frozen.

    Args:
        weight: [V, E], in the type of the products.
        bias: [V]
        cap: softcap of the logits; 0: none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, cap: float) -> None:
        self.weight = weight
        self.bias = bias
        self.cap = cap
        self._kept = threading.local()

    @classmethod
    def of(cls, config: ModelConfig, tensors: Tensors, dtype: torch.dtype) -> Head:
        """That of a model."""
        weight = tensors["embed.weight" if config.tied_head else "head.weight"].to(dtype)
        bias = tensors["head.bias"].to(dtype) if "head" in config.biases else None
        return cls(weight, bias, config.logit_softcap)

    def space(self, rows: int) -> Tensor:
        """Memory for three times logits [3, rows, V], of this thread; what was in it is overwritten.

        Fresh memory of this size would cost as much as what is done in it.
        """
        space: Tensor | None = getattr(self._kept, "space", None)
        if space is None or space.shape[1] < rows:
            space = self._kept.space = self.weight.new_empty(3, rows, len(self.weight))
        return space[:, :rows]

    def logits(self, x: Tensor, out: Tensor) -> Tensor:
        """Before the softcap, in the type of the products: [n, E] -> `out` [n, V]."""
        torch.mm(x.to(self.weight.dtype), self.weight.T, out=out)
        return out if self.bias is None else out.add_(self.bias)

    def log_probs(self, x: Tensor) -> Tensor:
        """[n, E] -> log softmax, float32 [n, V]."""
        return log_probs(self.logits(x, self.weight.new_empty(len(x), len(self.weight))), self.cap)[0]


def divergence(student: Tensor, teacher: Tensor, head: Head, teacher_head: Head, loss: Loss) -> Tensor:
    """Mean over tokens, nats.

    `student` and `teacher`: what their heads multiply, [n, E]; only `student` gets a gradient.
    """
    value: Tensor = _Divergence.apply(student, teacher, head, teacher_head, loss)  # type: ignore[no-untyped-call]
    return value


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, head: Head, teacher_head: Head, loss: Loss
    ) -> Tensor:
        total = 0.0
        slopes = []
        for ours, theirs in zip(torch.split(student, ROWS), torch.split(teacher, ROWS), strict=True):
            s, t, slope = head.space(len(ours))  # [rows, V] each
            head.logits(ours, s)
            teacher_head.logits(theirs, t)
            if loss == "forward-kl" and not head.cap and not teacher_head.cap:
                total += divergence_slope(s, t, slope)
            else:
                step = max(1, _CACHED // s.shape[1])
                for rows in (slice(at, at + step) for at in range(0, len(s), step)):
                    total += _compare(s[rows], t[rows], (head.cap, teacher_head.cap), loss, slope[rows])
            slopes.append((slope @ head.weight).float())
        ctx.save_for_backward(torch.cat(slopes).div_(len(student)))
        return torch.tensor(total / len(student))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0], None, None, None, None


def _compare(student: Tensor, teacher: Tensor, caps: tuple[float, float], loss: Loss, slope: Tensor) -> float:
    """Sum over logits [rows, V] of the divergence, whose gradient by the student's logits goes to `slope`."""
    s, bend = log_probs(student, caps[0])
    t, _ = log_probs(teacher, caps[1])
    p, q = t.exp(), s.exp()
    ahead = t.sub_(s)
    forward, reverse = (p * ahead).sum(), -(q * ahead).sum(dim=-1, keepdim=True)  # [], [rows, 1]
    if loss == "forward-kl":
        value, found = forward, q.sub_(p)
    elif loss == "reverse-kl":
        value, found = reverse.sum(), -q * (ahead + reverse)
    else:
        value, found = (forward + reverse.sum()) / 2, (q - p - q * (ahead + reverse)) / 2
    slope.copy_(found if bend is None else found.mul_(bend))
    return float(value)


def log_probs(logits: Tensor, cap: float) -> tuple[Tensor, Tensor | None]:
    """Log softmax, float32 [n, V]; and with a softcap its derivative by the logits [n, V]."""
    logits = logits.float()
    if not cap:
        return torch.log_softmax(logits, dim=-1), None
    bent = torch.tanh(logits / cap)
    return torch.log_softmax(cap * bent, dim=-1), 1 - bent.square()
