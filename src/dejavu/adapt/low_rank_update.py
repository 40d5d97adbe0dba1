"""`LowRankShare`: weights that change by updates of low rank alone (LoRA, Hu et al. 2022).

A weight is W = W0 + s B A with A [r, in], B [out, r] and s = alpha / r. It stays materialised, so that the forward pass and
the sketches are those of any weight; A and B get the projections of its gradient:

    dA = s B^T dW,   dB = s dW A^T.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dejavu.adapt.share import Share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dejavu.adapt.leading import Held

    Factors = tuple[Tensor, Tensor]
    """A and B."""


def first_factors(weights: Mapping[str, Tensor], rank: int, seed: int) -> dict[str, Factors]:
    """Factors for `weights` [out, in], float32: A normal with variance 1 / in, B zero, so that nothing changes yet."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in weights.items():
        rows, columns = weight.shape
        a = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
        found[name] = a, torch.zeros(rows, rank)
    return found


class LowRankShare(Share):
    """See the module.

    Args:
        names: of the weights, matrices.
        masters: see `Share`.
        used: see `Share`.
        turned: see `Share`.
        held: see `Share`.
        originals: W0 of the weights, float32.
        factors: A and B of the weights.
        scale: s.
    """

    def __init__(
        self,
        names: Sequence[str],
        masters: Mapping[str, Tensor],
        used: Mapping[str, Tensor],
        turned: Mapping[str, Tensor],
        held: Mapping[str, Held],
        *,
        originals: Mapping[str, Tensor],
        factors: Mapping[str, Factors],
        scale: float,
    ) -> None:
        self._originals = originals
        self._factors = factors
        self._scale = scale
        learned = {f"{name}.{part}": t for name in names for part, t in zip("AB", factors[name], strict=True)}
        super().__init__(names, masters, used, turned, held, learned)

    def _take(self, name: str, gradient: Tensor) -> None:
        a, b = self._factors[name]
        gradient = self._scale * gradient.float()
        a.grad, b.grad = b.T @ gradient, gradient @ a.T

    def _rebuild(self, name: str, master: Tensor) -> None:
        a, b = self._factors[name]
        torch.addmm(self._originals[name], b, a, alpha=self._scale, out=master)
