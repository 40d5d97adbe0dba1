"""What lies between the products of a step, by the compiled core: each operation passes over memory once.

Values are float32 or bfloat16, and computed in float32. Gradients are written out, and keep only what they need.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dejavu.engine.core import chosen_isa, load_core

if TYPE_CHECKING:
    from types import ModuleType

    from dejavu.models.config import ModelConfig


def linear(x: Tensor, weight: Tensor, turned: Tensor, bias: Tensor | None) -> Tensor:
    """[n, in] -> [n, out], of the type of the weights.

    Products are fastest on operands that are contiguous as they stand, and they are most of a step: forward they read
    `turned`, [in, out], backward `weight`, [out, in], which gets the gradient.
    """
    y: Tensor = _Linear.apply(x, weight, turned, bias)  # type: ignore[no-untyped-call]
    return y


def column_major(weight: Tensor) -> Tensor:
    """The same, a matrix so that its transpose is contiguous: for weights that are only read forward; see `linear`."""
    return weight.T.contiguous().T if weight.ndim == 2 else weight


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Over the last axis of x, float32; `weight`, float32, gets no gradient. The result is of type `dtype`."""
    y: Tensor = _RmsNorm.apply(x, weight, eps, dtype)  # type: ignore[no-untyped-call]
    return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: x [n, heads, e] with cos and sin, float32 [n, 1, r/2]; see `dejavu.reference.ops.rotate`."""
    y: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return y


def hidden_values(
    gate: Tensor, up: Tensor | None, config: ModelConfig, chosen: Tensor | None = None
) -> Tensor:
    """What the neurons of an MLP hold, of the shape of `gate`; see `ModelConfig.activation`.

    Args:
        gate: products of the gate; ungated: of up.
        up: products of up; None: ungated.
        config: names the activation.
        chosen: 1 for neurons that run, 0 for the others, of the type of `gate`; None: all run.
    """
    kind, threshold = str(config.activation), float(config.activation_threshold)
    y: Tensor = _Hidden.apply(gate, up, chosen, kind, threshold)  # type: ignore[no-untyped-call]
    return y


def choose(scores: Tensor, threshold: float) -> int:
    """Make `scores` 1 where they exceed `threshold`, otherwise 0. Returns how many do."""
    core, isa = _core()
    return int(core.learn_choose(isa, scores, threshold))


def causal_softmax(scores: Tensor, window: int, scale: float) -> Tensor:
    """Softmax of `scale` * scores [..., T, T] over the keys that each query sees: itself and those before it.

    `window`: how many these are at most; 0: all.
    """
    y: Tensor = _CausalSoftmax.apply(scores, window, scale)  # type: ignore[no-untyped-call]
    return y


def spread(x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Row `rows[i]` of x [n, ...] at i of [m, ...]; only what stands at its row's place has a gradient.

    Args:
        x: the rows.
        rows: int64 [m], every row at least once.
        places: int64 [n]: `rows[places[i]]` is i.
    """
    y: Tensor = _Spread.apply(x, rows, places)  # type: ignore[no-untyped-call]
    return y


def gather(x: Tensor, places: Tensor) -> Tensor:
    """Rows [n, ...] of x [m, ...] at `places`, int64 [n], none of them twice."""
    y: Tensor = _Gather.apply(x, places)  # type: ignore[no-untyped-call]
    return y


def divergence_slope(student: Tensor, teacher: Tensor, slope: Tensor) -> float:
    """Sum over the rows of logits [rows, V] of KL(teacher || student); its gradient by the student's goes to `slope`."""
    core, isa = _core()
    return float(core.learn_divergence(isa, student, teacher, slope))


@functools.cache
def _core() -> tuple[ModuleType, str]:
    return load_core(), chosen_isa()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, turned: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ turned if bias is None else torch.addmm(bias, x, turned)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (slope,) = grads
        by_x = slope @ weight if ctx.needs_input_grad[0] else None
        by_weight = slope.T.contiguous() @ x if ctx.needs_input_grad[1] else None
        return by_x, by_weight, None, slope.sum(dim=0) if ctx.needs_input_grad[3] else None


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        core, isa = _core()
        x = x.detach().contiguous()
        y, scale = torch.empty(x.shape, dtype=dtype), torch.empty(x.shape[:-1])
        core.learn_rms_norm(isa, x, weight, eps, scale, y)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        core, isa = _core()
        x, weight, scale = ctx.saved_tensors
        found = torch.empty_like(x)
        core.learn_rms_norm_slope(isa, x, weight, scale, grads[0].contiguous(), found)
        return found, None, None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x.detach(), cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _turn(grads[0], *ctx.saved_tensors, back=True), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    core, isa = _core()
    x = x.contiguous()
    y = torch.empty_like(x)
    core.learn_rotate(isa, x, cos, sin, back, y)
    return y


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor | None, chosen: Tensor | None, kind: str, threshold: float
    ) -> Tensor:
        core, isa = _core()
        ctx.save_for_backward(gate, up, chosen)
        ctx.activation = kind, threshold
        gate, up = gate.detach(), None if up is None else up.detach()
        y = torch.empty_like(gate)
        core.learn_activate(isa, kind, threshold, gate, up, chosen, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        core, isa = _core()
        gate, up, chosen = ctx.saved_tensors
        gate, up = gate.detach(), None if up is None else up.detach()
        by_gate, by_up = torch.empty_like(gate), None if up is None else torch.empty_like(gate)
        slope = grads[0].contiguous()
        core.learn_activate_slope(isa, *ctx.activation, gate, up, chosen, slope, by_gate, by_up)
        return by_gate, by_up, None, None, None


class _CausalSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, window: int, scale: float) -> Tensor:
        core, isa = _core()
        scores = scores.detach().contiguous()
        y = torch.empty_like(scores)
        core.learn_attend(isa, scores, window, scale, y)
        ctx.save_for_backward(y)
        ctx.shape = window, scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        core, isa = _core()
        (weights,) = ctx.saved_tensors
        found = torch.empty_like(weights)
        core.learn_attend_slope(isa, weights.detach(), grads[0].contiguous(), *ctx.shape, found)
        return found, None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, *ctx.saved_tensors), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = x.shape
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.shape).index_copy_(0, places, grads[0]), None
