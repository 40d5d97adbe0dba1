"""`FollowingProducts`: the estimated products of a plan, which follow the weights that they are of.

What a `Products` selector knows is linear in the weights W [n, d] of gate and up (`dejavu.training.size_learner`):
b = W D, and bias = W q plus the biases of the MLP. So D [d, r] and q [d], found from the plan and the weights that it was
made for, give new estimates whenever the weights have changed, and nothing is learned. Spreads stay those of the plan.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from dejavu.adapt.operations import hidden_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dejavu.models.config import ModelConfig
    from dejavu.plan import Products


class FollowingProducts:
    """Those of some layers.

    Args:
        config: the model.
        selectors: by layer, made for these weights:
        masters: float32, by dejavu's names; `refresh` reads what they have become.
        dtype: of the products.
    """

    def __init__(
        self,
        config: ModelConfig,
        selectors: Mapping[int, Products],
        masters: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> None:
        self._config = config
        self._masters = masters
        self._dtype = dtype
        self.selectors = dict(selectors)
        """By layer, as they are now: rounded, as plans store them."""
        self._follow: dict[int, Tensor] = {}  # [d, r + 1]: D and q
        self._used: dict[int, tuple[Tensor, ...]] = {}  # a, b, bias, spread
        for layer, selector in selectors.items():
            rows, shift = self._rows(layer)
            known = torch.tensor(selector.b), torch.tensor(selector.bias)[:, None] - shift
            wanted = torch.cat(known, dim=1).double()  # [n, r + 1]
            self._follow[layer] = torch.linalg.lstsq(rows.double(), wanted).solution.float()

    def refresh(self, layer: int) -> None:
        """Make the estimates of a layer from the weights of now."""
        rows, shift = self._rows(layer)
        found = rows @ self._follow[layer]  # [n, r + 1]
        b, bias = found[:, :-1].numpy(), (found[:, -1:] + shift)[:, 0].numpy()
        selector = self.selectors[layer] = dataclasses.replace(self.selectors[layer], b=b, bias=bias)
        self._used[layer] = tuple(
            torch.tensor(array, dtype=self._dtype)
            for array in (selector.a, selector.b, selector.bias, selector.spread)
        )

    def scores(self, layer: int, y: Tensor) -> Tensor:
        """Of all neurons, [n, f], for what the selector reads [n, d]; see `dejavu.plan.Products`."""
        a, b, bias, spread = self._used[layer]
        c = self._config
        z = torch.addmm(bias, y.to(self._dtype) @ a.T, b.T)  # [n, 2 f], ungated [n, f]
        f = z.shape[1] // 2 if c.gated else z.shape[1]
        above, below = z + spread, z - spread
        squares = [hidden_values(x[:, :f].contiguous(), None, c).square() for x in (above, below)]
        scores = (squares[0] + squares[1]) / 2
        if not c.gated:
            return scores
        ups = [x[:, f:].clamp_min(0) if c.activation == "drelu" else x[:, f:] for x in (above, below)]
        return scores * (ups[0].square() + ups[1].square()) / 2

    def _rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """The weights that are estimated [n, d], and the biases of the MLP [n, 1]."""
        c = self._config
        parts, rows, shifts = ("gate", "up") if c.gated else ("up",), [], []
        for part in parts:
            name = f"layers.{layer}.{part}"
            rows.append(self._masters[f"{name}.weight"].detach())
            bias = self._masters[f"{name}.bias"].detach() if part in c.biases else torch.zeros(len(rows[-1]))
            shifts.append(bias)
        return torch.cat(rows), torch.cat(shifts)[:, None]
