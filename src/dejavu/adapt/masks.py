"""`PlanMasks`: the masks of deployment in the training loop.

Each layer keeps the neurons whose score is above a threshold, the scores being those of the plan's selectors, made of the
weights as they are now; low-rank predictors of labels learn on beside them. The thresholds follow the layer's target
density: after each batch they move part of the way to the quantile of its scores.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch

from dejavu.adapt.leading import leading
from dejavu.adapt.operations import choose, column_major, hidden_values
from dejavu.adapt.predictors import Predictors
from dejavu.adapt.products import FollowingProducts
from dejavu.codecs import mlp_codec
from dejavu.errors import PlanError
from dejavu.plan import Dense, LowRank, Oracle, Pick, Products, Sketch, Threshold
from dejavu.training.calibrate import DENSE_FROM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dejavu.adapt.leading import Held
    from dejavu.adapt.model import Block
    from dejavu.adapt.predictors import Gradient
    from dejavu.codecs import Codec
    from dejavu.models.config import ModelConfig
    from dejavu.plan import NeuronSelector
    from dejavu.training.quantiles import Quantiles

RATE = 0.2
"""Share of the way to a batch's quantile that a threshold moves."""
SAMPLE = 1 << 15
"""Scores of a batch that the quantile is taken over, about."""


class PlanMasks:
    """Selectors and thresholds of all layers; `MaskPass` applies them.

    Args:
        config: the model.
        selectors: per layer; what they pick is replaced by the thresholds here.
        densities: per layer, the target; they fall to it from 1, or from where `aim` says.
        codec: the weights' in deployment; sketches read its leading bits.
        masters: the weights, float32; sketches are made of them by `refresh`.
        held: those that are used as their leading bits say, as `leading_weights` wants it.
        dtype: of the products.
        threads: for making sketches.

    Raises:
        PlanError: a selector that has no scores.
        InputError: a sketch, and the codec has no leading bits, or not so many.
    """

    def __init__(
        self,
        config: ModelConfig,
        selectors: Sequence[NeuronSelector],
        densities: Sequence[float],
        *,
        codec: Codec,
        masters: Mapping[str, Tensor],
        held: Mapping[str, Held],
        dtype: torch.dtype,
        threads: int = 1,
    ) -> None:
        for selector in selectors:
            if not isinstance(selector, Dense | LowRank | Oracle | Products | Sketch | Threshold):
                raise PlanError(
                    f"a model cannot be adapted to selector {selector.kind}",
                    fix="use a plan of sketch, low_rank or threshold selectors",
                )
        self._config = config
        self._codec = codec
        self._masters = masters
        self._held = held
        self._dtype = dtype
        self._threads = threads
        self._selectors = tuple(selectors)
        self.starts = (1.0,) * config.n_layers
        self.targets = tuple(densities)
        self.thresholds = [-math.inf] * config.n_layers
        self._known: dict[str, Tensor] = {}
        self.predictors = Predictors(
            {layer: x for layer, x in enumerate(selectors) if isinstance(x, LowRank)}, dtype
        )
        self._products = FollowingProducts(
            config, {layer: x for layer, x in enumerate(selectors) if isinstance(x, Products)}, masters, dtype
        )
        self.refresh_all()

    @property
    def selectors(self) -> tuple[NeuronSelector, ...]:
        """Per layer; predictors as they are now."""
        now = self.predictors.selectors | self._products.selectors
        return tuple(now.get(layer, x) for layer, x in enumerate(self._selectors))

    @property
    def description(self) -> str:
        """Of the selectors, for people."""
        names = {
            f"{x.bits}-bit sketches" + (", also as values" if x.values == "leading" else "")
            if isinstance(x, Sketch)
            else str(x.kind)
            for x in self.selectors
        }
        return " and ".join(sorted(names))

    def refresh_all(self) -> None:
        """`refresh` all layers."""
        for layer in range(len(self.selectors)):
            self.refresh(layer)

    def restart(self) -> None:
        """Forget the thresholds."""
        self.thresholds = [-math.inf] * len(self.selectors)

    def refresh(self, layer: int) -> None:
        """Make what a layer is chosen by, as far as it is made of weights, from those of now."""
        selector, c = self.selectors[layer], self._config
        if isinstance(selector, Products):
            self._products.refresh(layer)
        if isinstance(selector, Sketch):
            codec = mlp_codec(self._codec, layer, c.n_layers)
            for name in _dots(c, layer):
                if name in self._held:
                    self._held[name].refresh(self._threads)
                    continue
                rows = self._masters[name].numpy()
                found = leading(codec, rows, selector.bits, self._threads)
                self._known[name] = column_major(torch.from_numpy(found).to(self._dtype))

    def aim(self, densities: Sequence[float], *, start: Sequence[float]) -> None:
        """Set other targets per layer, and the densities on the way from which they lie."""
        self.starts, self.targets = tuple(start), tuple(densities)

    def target(self, layer: int, annealed: float) -> float:
        """The density of a layer, the share `annealed` of the way from its start to its target."""
        return (1 - annealed) * self.starts[layer] + annealed * self.targets[layer]

    def runs_all(self, layer: int, annealed: float) -> bool:
        """Whether a layer has no threshold."""
        selector = self.selectors[layer]
        if isinstance(selector, Sketch) and selector.values == "leading":
            return False  # a layer that runs all neurons runs them by all their bits
        return isinstance(selector, Dense) or self.target(layer, annealed) >= DENSE_FROM

    def wanted(self, layer: int, scores: Tensor, annealed: float) -> float:
        """The threshold that `scores` call for."""
        return quantile(scores, self.target(layer, annealed))

    def follow(self, passes: Sequence[MaskPass]) -> None:
        """Move the thresholds towards those that `passes` found."""
        for layer, before in enumerate(self.thresholds):
            found = sorted(p.quantiles[layer] for p in passes if layer in p.quantiles)
            if found:
                mean = sum(found) / len(found)
                self.thresholds[layer] = mean if before == -math.inf else before + RATE * (mean - before)

    def settle(self, layer: int, scores: Quantiles) -> None:
        """Set the threshold of a layer to the quantile of `scores`, for its target."""
        if scores.count:
            self.thresholds[layer] = scores.threshold(self.targets[layer])

    def deployed(self) -> tuple[NeuronSelector, ...]:
        """The selectors of a plan that does what the masks do."""
        return tuple(
            dataclasses.replace(selector, density=None, threshold=threshold)
            if isinstance(selector, Pick) and threshold > -math.inf
            else Dense()
            for selector, threshold in zip(self.selectors, self.thresholds, strict=True)
        )

    def scores(self, layer: int, block: Block) -> Tensor:
        """What the selector of a layer goes by, [n, f]."""
        selector = self.selectors[layer]
        if isinstance(selector, Sketch) and selector.values == "leading":
            signed = not self._config.gated and self._config.exact_zeros
            return block.products - self._config.activation_threshold if signed else block.hidden().abs_()
        if isinstance(selector, Sketch):
            return self._sketch(layer, self._ahead(layer, selector.lookahead, block), block)
        if isinstance(selector, LowRank):
            return self.predictors.scores(layer, self._ahead(layer, selector.lookahead, block))
        if isinstance(selector, Products):
            return self._products.scores(layer, self._ahead(layer, selector.lookahead, block))
        return (block.hidden() if isinstance(selector, Oracle) else block.gate).abs()  # a copy

    def gradient(self, layer: int, block: Block, scores: Tensor, annealed: float) -> Gradient | None:
        """Of a low-rank predictor, for the neurons that matter most at the density of now; None: the layer has none."""
        selector = self.selectors[layer]
        if not isinstance(selector, LowRank):
            return None
        sizes = block.hidden().abs_()  # [n, f]
        label = sizes > quantile(sizes, self.target(layer, annealed))
        return self.predictors.gradient(layer, self._ahead(layer, selector.lookahead, block), scores, label)

    def hidden(self, block: Block, chosen: Tensor, threshold: float) -> Tensor:
        """What the neurons hold, [n, f], of which those with 1 in `chosen` [n, f] have a score above the threshold."""
        return block.hidden(chosen)

    def _sketch(self, layer: int, y: Tensor, block: Block) -> Tensor:
        c, p = self._config, f"layers.{layer}."
        up = block.decoder.linear(f"{p}up", y, self._known[f"{p}up.weight"])  # [n, f]
        if c.gated:
            gate = block.decoder.linear(f"{p}gate", y, self._known[f"{p}gate.weight"])  # [n, f]
            return hidden_values(gate, up, c).abs_()
        return up - c.activation_threshold if c.exact_zeros else hidden_values(up, None, c).abs_()

    def _ahead(self, layer: int, distance: int, block: Block) -> Tensor:
        """What a selector reads: the layer's norm of what enters the MLP `distance` layers before, [n, d]."""
        if min(distance, layer) == 0:
            return block.y
        x = block.inputs[layer - min(distance, layer)]
        return block.decoder.norm(f"layers.{layer}.mlp_norm", x) if self._config.pre_norm else x


def leading_weights(
    config: ModelConfig, selectors: Sequence[NeuronSelector], codec: Codec
) -> dict[str, tuple[Codec, int]]:
    """The weights that neurons hold by their leading bits, each with its codec and the number of these."""
    return {
        name: (mlp_codec(codec, layer, config.n_layers), selector.bits)
        for layer, selector in enumerate(selectors)
        if isinstance(selector, Sketch) and selector.values == "leading"
        for name in _dots(config, layer)
    }


def _dots(config: ModelConfig, layer: int) -> tuple[str, ...]:
    return tuple(f"layers.{layer}.{part}.weight" for part in (("gate", "up") if config.gated else ("up",)))


class MaskPass:
    """`dejavu.adapt.model.Masks` for one pass of a batch; notes what it sees. Passes may run side by side.

    Args:
        masks: their thresholds are not changed.
        annealed: see `PlanMasks.target`.
        learning: note the quantile of each layer's scores, and the gradients of predictors.
        collect: per layer, where all scores are to be counted.
        recall: compare what is chosen with the neurons that matter most.
    """

    def __init__(
        self,
        masks: PlanMasks,
        *,
        annealed: float = 1.0,
        learning: bool = False,
        collect: Sequence[Quantiles] | None = None,
        recall: bool = False,
    ) -> None:
        self._masks = masks
        self._annealed = annealed
        self._learning = learning
        self._collect = collect
        self._recall = recall
        self.densities = [1.0] * len(masks.selectors)
        """Of each layer."""
        self.recalls = [1.0] * len(masks.selectors)
        """Of each layer, if asked for: the share that is chosen of as many neurons, those with the largest values."""
        self.quantiles: dict[int, float] = {}
        """By layer: the threshold that its scores call for."""
        self.gradients: dict[int, Gradient] = {}
        """By layer: of its predictor."""

    def __call__(self, layer: int, block: Block) -> Tensor:
        """See `dejavu.adapt.model.Masks`."""
        masks = self._masks
        if masks.runs_all(layer, self._annealed):
            return block.hidden()
        with torch.no_grad():
            scores = masks.scores(layer, block)  # [n, f]
            if self._collect is not None:
                self._collect[layer].add(scores.float().numpy())
            threshold = masks.thresholds[layer]
            if self._learning or threshold == -math.inf:
                found = self.quantiles[layer] = masks.wanted(layer, scores, self._annealed)
                threshold = found if threshold == -math.inf else threshold
            if self._learning and (gradient := masks.gradient(layer, block, scores, self._annealed)):
                self.gradients[layer] = gradient
            self.densities[layer] = density = choose(scores, threshold) / scores.numel()
            if self._recall:
                exact = block.hidden().abs_()  # [n, f]
                largest = exact > quantile(exact, density)
                self.recalls[layer] = (
                    float(scores[largest].mean(dtype=torch.float32)) if largest.any() else 1.0
                )
        return masks.hidden(block, scores, threshold)  # scores are 0 or 1 now


def quantile(scores: Tensor, density: float) -> float:
    """What about a share `density` of the scores exceeds."""
    flat = scores.reshape(-1)[:: max(1, scores.numel() // SAMPLE) | 1]  # odd: no neuron is always left out
    rank = min(max(round((1 - density) * len(flat)), 1), len(flat))
    return float(flat.kthvalue(rank).values)
