"""`Gates`: what opens the neurons of a ReLU twin.

A neuron holds relu(g - t) u (FATReLU: g u where g > t; dReLU: relu(g - t) relu(u)), t being its layer's threshold: exactly
zero where g does not exceed it. Thresholds follow the layers' target densities, as those of masks do. A density of 1 stands
for the natural one, at a threshold of 0; from there thresholds rise in proportion until the target is reached.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from dejavu.adapt.masks import PlanMasks, quantile
from dejavu.adapt.operations import hidden_values
from dejavu.plan import Threshold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dejavu.adapt.model import Block
    from dejavu.adapt.twin import Twin
    from dejavu.plan import NeuronSelector
    from dejavu.training.quantiles import Quantiles


class Gates(PlanMasks):
    """Thresholds of all layers.

    Args:
        twin: the model.
        densities: per layer, the target.
    """

    def __init__(self, twin: Twin, densities: Sequence[float]) -> None:
        selectors = [Threshold(threshold=0.0)] * twin.config.n_layers
        super().__init__(
            twin.config, selectors, densities, codec="f32", masters={}, held={}, dtype=torch.float32
        )  # of which the last three are for sketches
        self._least = twin.least_threshold
        self._name = twin.name

    @property
    def description(self) -> str:
        """See `PlanMasks.description`."""
        return f"gates of {self._name}"

    def runs_all(self, layer: int, annealed: float) -> bool:
        """No layer does."""
        return False

    def wanted(self, layer: int, scores: Tensor, annealed: float) -> float:
        """See `PlanMasks.wanted`."""
        target = self.targets[layer]
        if target >= 1:
            found = 0.0
        elif self.starts[layer] >= 1:
            found = annealed * quantile(scores, target)
        else:
            found = quantile(scores, self.target(layer, annealed))
        return max(found, self._least)

    def settle(self, layer: int, scores: Quantiles) -> None:
        """See `PlanMasks.settle`."""
        if self.targets[layer] < 1:
            super().settle(layer, scores)
        else:
            self.thresholds[layer] = 0.0
        self.thresholds[layer] = max(self.thresholds[layer], self._least)

    def deployed(self) -> tuple[NeuronSelector, ...]:
        """Selectors that leave out exact zeros: the thresholds are in the weights then."""
        return self.selectors

    def scores(self, layer: int, block: Block) -> Tensor:
        """What opens the neurons: g, ungated u [n, f]."""
        return block.products.clone()

    def hidden(self, block: Block, chosen: Tensor, threshold: float) -> Tensor:
        """See `PlanMasks.hidden`."""
        if self._name == "drelu":
            return hidden_values(block.products - threshold, block.up, self._config)
        return hidden_values(
            block.products, block.up, dataclasses.replace(self._config, activation_threshold=threshold)
        )
