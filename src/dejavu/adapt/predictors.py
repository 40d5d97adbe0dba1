"""`Predictors`: the low-rank predictors of a plan, learning on beside the model whose neurons they choose.

A plan brings them as `dejavu train` left them. While the model changes, they learn what it holds now: labels are the
neurons with the largest values, as many as the layer's density takes, and the loss is that of `dejavu.training.low_rank`.
Masks go by them as plans store them, rounded; gradients pass the rounding.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dejavu.adapt.share import BETAS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from dejavu.plan import LowRank

RATE = 0.01
"""Highest learning rate, over the root mean square of what it is of: they begin almost where they end."""

_ARRAYS = ("a", "b", "bias")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Gradient:
    """Of one predictor, float32."""

    a: Tensor
    b: Tensor
    bias: Tensor

    def is_finite(self) -> bool:
        """Whether all of it is."""
        return all(bool(part.isfinite().all()) for part in (self.a, self.b, self.bias))


class Predictors:
    """Those of some layers.

    Args:
        selectors: by layer.
        dtype: of the products.
    """

    def __init__(self, selectors: Mapping[int, LowRank], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.selectors = dict(selectors)
        """By layer, as they are now: rounded, as plans store them."""
        self._masters = {
            (layer, name): torch.tensor(getattr(selector, name), dtype=torch.float32)
            for layer, selector in selectors.items()
            for name in _ARRAYS
        }
        self._sizes = [max(float(t.square().mean().sqrt()), 1e-6) for t in self._masters.values()]
        groups = [{"params": [tensor]} for tensor in self._masters.values()]
        self._adam = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0) if groups else None
        self._used: dict[tuple[int, str], Tensor] = {}
        self._round()

    def scores(self, layer: int, x: Tensor) -> Tensor:
        """Of all neurons, b hidden(a x) + bias [n, f], for x [n, d]."""
        return self._middle(layer, x) @ self._used[layer, "b"].T + self._used[layer, "bias"]

    def gradient(self, layer: int, x: Tensor, scores: Tensor, label: Tensor) -> Gradient:
        """Of the class-balanced loss.

        Args:
            layer: whose predictor it is.
            x: what it read [n, d].
            scores: what `scores` made of that [n, f].
            label: whether a neuron matters, bool [n, f].
        """
        truth = label.to(self._dtype)
        share = min(max(float(truth.mean(dtype=torch.float32)), 1e-4), 1 - 1e-4)
        active, inactive = 0.5 / share, 0.5 / (1 - share)
        error = (scores.sigmoid() - truth).mul_(truth * (active - inactive) + inactive).div_(label.numel())
        middle = self._middle(layer, x)  # [n, r]
        back = error @ self._used[layer, "b"]  # [n, r]
        if self.selectors[layer].hidden == "relu":
            back = back * (middle > 0)
        x = x.to(self._dtype)
        return Gradient(
            (back.T @ x).float(), (error.T @ middle).float(), error.sum(dim=0, dtype=torch.float32)
        )

    @torch.no_grad()
    def learn(self, found: Sequence[Mapping[int, Gradient]], pace: float) -> None:
        """One step along the mean of what passes `found`, at the share `pace` of the highest learning rate.

        A gradient that is not finite does not count; a layer of which there is no other stays as it is.
        """
        if self._adam is None:
            return
        usable = [{i: gradient for i, gradient in some.items() if gradient.is_finite()} for some in found]
        for (layer, name), tensor in self._masters.items():
            parts = [getattr(gradients[layer], name) for gradients in usable if layer in gradients]
            tensor.grad = torch.stack(parts).mean(dim=0) if parts else None
        for group, size in zip(self._adam.param_groups, self._sizes, strict=True):
            group["lr"] = RATE * pace * size
        self._adam.step()
        self._round()

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that `restore` needs."""
        found = {}
        for (layer, name), tensor in self._masters.items():
            found[f"predictors.{layer}.{name}"] = tensor.numpy()
            state = self._adam.state[tensor] if self._adam is not None else {}
            for part in (*_MOMENTS, "step") if state else ():
                found[f"predictors.{layer}.{name}.{part}"] = (
                    state[part].numpy().reshape(-1 if part == "step" else tensor.shape)
                )
        return found

    def restore(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Go on from `arrays`."""
        for (layer, name), tensor in self._masters.items():
            tensor.copy_(torch.from_numpy(arrays[f"predictors.{layer}.{name}"]))
            place = f"predictors.{layer}.{name}."
            if self._adam is not None and f"{place}step" in arrays:
                moments = {part: torch.from_numpy(arrays[place + part]) for part in _MOMENTS}
                self._adam.state[tensor] = {"step": torch.tensor(float(arrays[f"{place}step"][0])), **moments}
        self._round()

    def _round(self) -> None:
        for layer, selector in self.selectors.items():
            changed = {name: self._masters[layer, name].numpy().copy() for name in _ARRAYS}
            found = self.selectors[layer] = dataclasses.replace(selector, **changed)
            for name in _ARRAYS:
                self._used[layer, name] = torch.tensor(getattr(found, name), dtype=self._dtype)

    def _middle(self, layer: int, x: Tensor) -> Tensor:
        middle = x.to(self._dtype) @ self._used[layer, "a"].T  # [n, r]
        return middle.relu() if self.selectors[layer].hidden == "relu" else middle
