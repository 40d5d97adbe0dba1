"""The budget search: which selector at which density each layer runs, judged by end-to-end perplexity.

1. Sensitivity: each layer alone runs each family at a few densities; the probe tells how far predictions move.
2. Allocation (`allocate.py`) for a mean density. For a limit on the perplexity ratio, that density is found by
   halving, each try measured with all layers in place.
3. Thresholds are set again: with all layers sparse the scores are a little different from those of the dense model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dejavu.plan import AccessPlan, Dense, LayerPlan
from dejavu.training.allocate import STEP, Curve, Option, options, with_mean_density
from dejavu.training.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dejavu.plan import Compensator, HeadSelector, NeuronSelector
    from dejavu.training.calibrate import Calibration
    from dejavu.training.cost import Cost
    from dejavu.training.inputs import Block
    from dejavu.training.probe import Measured, Probe
    from dejavu.training.progress import Progress

RATIO_STEPS = 6
"""Halvings of the density for a limit on the ratio."""


@dataclass(frozen=True)
class Allotment:
    """What the layers run: per layer a selector of one block with the density it is meant to have."""

    block: Block
    selectors: tuple[NeuronSelector | HeadSelector, ...]
    densities: tuple[float, ...]
    families: tuple[str, ...]
    """Names, for the evidence."""

    @property
    def density(self) -> float:
        """Mean over layers."""
        return sum(self.densities) / len(self.densities)


class Search:
    """Finds plans for one block (neurons or heads) of all layers.

    Args:
        fingerprint: of the model's weights.
        probe: measures plans.
        calibrations: families to choose from, calibrated.
        cost: counts bytes.
        progress: told of each measurement.
    """

    def __init__(
        self,
        fingerprint: str,
        probe: Probe,
        calibrations: Sequence[Calibration],
        cost: Cost,
        progress: Progress | None = None,
    ) -> None:
        self._fingerprint = fingerprint
        self._probe = probe
        self._calibrations = calibrations
        self._cost = cost
        self._progress = progress or Silent()
        self._block = calibrations[0].family.block
        self._layers = len(calibrations[0].family.selectors)
        self._options: list[list[Option]] = []

    def measure_layers(self, densities: Sequence[float]) -> None:
        """Step 1, at `densities`."""
        runs = self._layers * len(self._calibrations) * len(densities)
        self._progress.start(f"sensitivity of {self._block}", runs * self._probe.tokens)
        for layer in range(self._layers):
            curves = [
                Curve(
                    tuple(densities),
                    tuple(self._divergence(layer, calibration, density) for density in densities),
                )
                for calibration in self._calibrations
            ]
            count = partial(self._bytes, layer)
            self._options.append(options(curves, count, count(None, 1.0)))

    def uniform(self, density: float) -> Allotment:
        """The first family at the same density in all layers."""
        bytes_ = self._bytes(0, 0, density)
        return self._allot([Option(0, density, bytes_, 0.0)] * self._layers)

    def for_density(self, density: float) -> Allotment:
        """Step 2: the least divergence at a mean density over layers."""
        return self._allot(with_mean_density(self._options, density))

    def for_ratio(self, limit: float, others: Sequence[LayerPlan]) -> Allotment:
        """Step 2: the lowest mean density at which the perplexity ratio stays within `limit`.

        Args:
            limit: above 1.
            others: what the other block of each layer runs, and compensators.
        """
        self._progress.start("search", RATIO_STEPS * self._probe.tokens)
        low, high = min(option.density for found in self._options for option in found), 1.0
        best = self.for_density(high)
        for _ in range(RATIO_STEPS):
            middle = (low + high) / 2
            tried = self.for_density(middle)
            measured = self.measure(combine(others, tried))
            self._progress.advance(self._probe.tokens, f"density {middle:.3f}: ratio {measured.ratio:.4f}")
            if measured.ratio <= limit:
                best, high = tried, middle
            else:
                low = middle
        return best

    def settle(self, allotment: Allotment, others: Sequence[LayerPlan]) -> Allotment:
        """Step 3: correct the thresholds by the densities that the whole plan really has."""
        measured = self.measure(combine(others, allotment))
        real = measured.neurons if self._block == "neurons" else measured.heads
        selectors = []
        for layer, (selector, wanted) in enumerate(
            zip(allotment.selectors, allotment.densities, strict=True)
        ):
            if not isinstance(selector, Dense):
                calibration = self._named(allotment.families[layer])
                # What came out is off by real / wanted: aim off as far in the other direction.
                corrected = min(wanted * wanted / max(real[layer], 1e-3), 1.0 - STEP / 2)
                selector = calibration.selector(layer, corrected)
            selectors.append(selector)
        return dataclasses.replace(allotment, selectors=tuple(selectors))

    def worthwhile(
        self, allotment: Allotment, compensators: Sequence[Compensator | None]
    ) -> list[Compensator | None]:
        """Those of `compensators` that lower a layer's divergence more than their bytes would as density."""
        self._progress.start("compensators, one by one", 2 * self._layers * self._probe.tokens)
        kept: list[Compensator | None] = []
        for layer, compensator in enumerate(compensators):
            if compensator is None:
                kept.append(None)
                self._progress.advance(2 * self._probe.tokens)
                continue
            without, with_it = (
                self._alone(layer, allotment.selectors[layer], c) for c in (None, compensator)
            )
            price = self._price(layer, allotment.families[layer], allotment.densities[layer])
            gain = without.divergence - with_it.divergence
            kept.append(compensator if gain > price * self._cost.compensator(compensator) else None)
            state = f"layer {layer}: {without.divergence:.5f} nats, compensated {with_it.divergence:.5f}"
            self._progress.advance(2 * self._probe.tokens, state)
        return kept

    def measure(self, layers: Sequence[LayerPlan]) -> Measured:
        """Run a plan of `layers` over the probe."""
        return self._probe.measure(AccessPlan(model=self._fingerprint, layers=tuple(layers)))

    def _divergence(self, layer: int, calibration: Calibration, density: float) -> float:
        measured = self._alone(layer, calibration.selector(layer, density), None)
        state = f"layer {layer}, {calibration.family.name} at {density:.2f}: {measured.divergence:.5f} nats"
        self._progress.advance(self._probe.tokens, state)
        return measured.divergence

    def _alone(
        self, layer: int, selector: NeuronSelector | HeadSelector, compensator: Compensator | None
    ) -> Measured:
        """Run one layer sparsely and the others densely."""
        chosen: dict[str, Any] = {self._block: selector}
        sparse = LayerPlan(**chosen, compensator=compensator)
        return self.measure([sparse if i == layer else LayerPlan() for i in range(self._layers)])

    def _price(self, layer: int, family: str, density: float) -> float:
        """Nats that a byte more of density would take away, by the curve of the layer's family; 0 if not measured."""
        if not self._options:
            return 0.0
        index = [c.family.name for c in self._calibrations].index(family)
        same = sorted(
            (o for o in self._options[layer] if o.family == index), key=lambda o: abs(o.density - density)
        )
        one, other = same[0], same[1]
        return max((one.divergence - other.divergence) / (other.bytes - one.bytes), 0.0)

    def _bytes(self, layer: int, family: int | None, density: float) -> float:
        selector = Dense() if family is None else self._calibrations[family].family.selectors[layer]
        if self._block == "neurons":
            return self._cost.neurons(layer, selector, density)
        return self._cost.heads(selector, density)  # type: ignore[arg-type]

    def _allot(self, chosen: Sequence[Option]) -> Allotment:
        selectors: list[NeuronSelector | HeadSelector] = []
        for layer, option in enumerate(chosen):
            dense = option.family is None
            selectors.append(
                Dense() if dense else self._calibrations[option.family or 0].selector(layer, option.density)
            )
        return Allotment(
            self._block,
            tuple(selectors),
            tuple(option.density for option in chosen),
            tuple("dense" if o.family is None else self._calibrations[o.family].family.name for o in chosen),
        )

    def _named(self, name: str) -> Calibration:
        return next(c for c in self._calibrations if c.family.name == name)


def combine(layers: Sequence[LayerPlan], allotment: Allotment) -> list[LayerPlan]:
    """`layers` with the selectors of `allotment`; where it skips no neurons, nothing stands in for them."""
    combined = [
        dataclasses.replace(layer, **{allotment.block: selector})  # type: ignore[arg-type]
        for layer, selector in zip(layers, allotment.selectors, strict=True)
    ]
    if allotment.block == "heads":
        return combined
    return [
        dataclasses.replace(layer, compensator=None) if isinstance(layer.neurons, Dense) else layer
        for layer in combined
    ]
