"""Who gets how much: one option per layer, by what it costs in bytes and how far it moves the predictions.

Each layer's options are measured alone, the other layers dense. For small changes the divergences of layers add up, so
the best choice for a budget is, for some price per byte, the option of each layer with the least
``divergence + price * bytes`` (Lagrange). Between measured densities the logarithm of the divergence is taken as linear.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STEP = 0.025
"""Distance of the densities that are considered."""
_LOWEST_PRICE, _HIGHEST_PRICE = -16.0, 0.0
"""log10 of nats per byte: all dense, and all as sparse as can be."""
_HALVINGS = 40
_FLOOR = 1e-9  # divergence, nats: what counts as none


@dataclass(frozen=True)
class Option:
    """What a layer could run: a family at a density. None as family: dense."""

    family: int | None
    density: float
    bytes: float
    divergence: float


@dataclass(frozen=True)
class Curve:
    """Divergence of one layer and family at the densities that were measured, ascending."""

    densities: tuple[float, ...]
    divergences: tuple[float, ...]

    def at(self, density: float) -> float:
        """Interpolated, and beyond the last point extrapolated along the last slope; never rising with density."""
        x = np.array(self.densities)
        y = np.log(np.maximum(np.maximum.accumulate(self.divergences[::-1])[::-1], _FLOOR))
        if density <= x[-1] or len(x) < 2:
            return float(np.exp(np.interp(density, x, y)))
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
        return float(np.exp(y[-1] + slope * (density - x[-1])))


def options(
    curves: Sequence[Curve], bytes_at: Callable[[int, float], float], dense_bytes: float
) -> list[Option]:
    """All options of a layer, given the curve of each family and its bytes at a density."""
    found = [Option(None, 1.0, dense_bytes, 0.0)]
    for family, curve in enumerate(curves):
        for density in np.arange(curve.densities[0], 1.0 - STEP / 2, STEP).round(4).tolist():
            found.append(Option(family, density, bytes_at(family, density), curve.at(density)))
    return found


def with_mean_density(layers: Sequence[Sequence[Option]], density: float) -> list[Option]:
    """One option per layer: the highest price per byte that keeps the mean density at `density` or above it.

    What is above it is taken away again from all layers that are not dense, in proportion.
    """
    low, high = _LOWEST_PRICE, _HIGHEST_PRICE
    best = _choose(layers, 10.0**low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        chosen = _choose(layers, 10.0**middle)
        if mean_density(chosen) >= density:
            best, low = chosen, middle
        else:
            high = middle
    dense = sum(option.family is None for option in best)
    sparse = sum(option.density for option in best if option.family is not None)
    share = (density * len(best) - dense) / sparse if sparse else 1.0
    if not 0 < share < 1:
        return best
    return [o if o.family is None else dataclasses.replace(o, density=o.density * share) for o in best]


def mean_density(chosen: Sequence[Option]) -> float:
    """Over layers."""
    return float(np.mean([option.density for option in chosen]))


def _choose(layers: Sequence[Sequence[Option]], price: float) -> list[Option]:
    """The best option of each layer at `price` nats per byte."""
    return [min(found, key=lambda option: option.divergence + price * option.bytes) for found in layers]
