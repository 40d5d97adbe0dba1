"""`PlanMasks`: the masks of deployment in the training loop.

Each layer keeps the neurons whose score is above a threshold, the scores being those of the plan's selectors, made of the
weights as they are now. The thresholds follow the layer's target density: after each batch they move part of the way
to the quantile of its scores.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dejavu.adapt.leading import leading
from dejavu.adapt.model import activate, gated
from dejavu.codecs import mlp_codec
from dejavu.errors import PlanError
from dejavu.plan import Dense, LowRank, Oracle, Sketch, Threshold
from dejavu.training.quantiles import Quantiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from dejavu.adapt.model import Block
    from dejavu.codecs import Codec
    from dejavu.models.config import ModelConfig
    from dejavu.plan import NeuronSelector

RATE = 0.2
"""Share of the way to a batch's quantile that a threshold moves."""
DENSE_FROM = 0.995
"""A target of this or more is dense."""
SAMPLE = 1 << 15
"""Scores of a batch that the quantile is taken over, about."""


class PlanMasks:
    """`dejavu.adapt.model.Masks` by selectors.

    Args:
        config: the model.
        selectors: per layer; what they pick is replaced by the thresholds here.
        densities: per layer, the target.
        codec: the weights' in deployment; sketches read its leading bits.
        masters: the weights, float32; sketches are made of them by `refresh`.
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
        dtype: torch.dtype,
        threads: int = 1,
    ) -> None:
        for selector in selectors:
            if not isinstance(selector, Dense | LowRank | Oracle | Sketch | Threshold):
                raise PlanError(
                    f"a model cannot be adapted to selector {selector.kind}",
                    fix="use a plan of sketch, low_rank or threshold selectors",
                )
        self._config = config
        self._codec = codec
        self._masters = masters
        self._dtype = dtype
        self._threads = threads
        self.selectors = tuple(selectors)
        self.targets = tuple(densities)
        self.thresholds = [-math.inf] * config.n_layers
        self.densities = [1.0] * config.n_layers
        """Of the last batch."""
        self._share = 1.0
        self._learning = False
        self._quantiles: list[Quantiles] | None = None
        self._known: dict[str, Tensor] = {}
        for layer, selector in enumerate(self.selectors):
            if isinstance(selector, LowRank):
                for name in ("a", "b", "bias"):
                    self._known[f"{layer}.{name}"] = torch.tensor(getattr(selector, name), dtype=dtype)
        self.refresh_all()

    def refresh_all(self) -> None:
        """`refresh` all layers."""
        for layer in range(len(self.selectors)):
            self.refresh(layer)

    def restart(self) -> None:
        """Forget the thresholds."""
        self.thresholds = [-math.inf] * len(self.selectors)

    def refresh(self, layer: int) -> None:
        """Make the sketches of a layer from the weights of now."""
        selector, c = self.selectors[layer], self._config
        if isinstance(selector, Sketch):
            codec = mlp_codec(self._codec, layer, c.n_layers)
            for part in ("gate", "up") if c.gated else ("up",):
                rows = self._masters[f"layers.{layer}.{part}.weight"].numpy()
                found = leading(codec, rows, selector.bits, self._threads)
                self._known[f"{layer}.{part}"] = torch.from_numpy(found).to(self._dtype)

    @contextmanager
    def learning(self, annealed: float) -> Iterator[None]:
        """Let thresholds follow, for densities that are the share `annealed` of the way from 1 to the targets."""
        self._learning, self._share = True, annealed
        try:
            yield
        finally:
            self._learning, self._share = False, 1.0

    @contextmanager
    def settling(self) -> Iterator[None]:
        """Set thresholds to the quantiles of all batches within, for the targets."""
        self._quantiles = [Quantiles() for _ in self.selectors]
        try:
            yield
        finally:
            self._quantiles = None

    def target(self, layer: int) -> float:
        """The density that a layer is to have now."""
        return 1 - (1 - self.targets[layer]) * self._share

    def __call__(self, layer: int, block: Block) -> Tensor:
        """See `dejavu.adapt.model.Masks`."""
        density = self.target(layer)
        if isinstance(self.selectors[layer], Dense) or density >= DENSE_FROM:
            self.densities[layer] = 1.0
            return block.hidden
        with torch.no_grad():
            scores = self.scores(layer, block)  # [n, f]
            if self._quantiles is not None:
                self._quantiles[layer].add(scores.float().numpy())
                self.thresholds[layer] = self._quantiles[layer].threshold(density)
            elif self._learning:
                self._follow(layer, scores, density)
            chosen = scores.gt_(self.thresholds[layer])  # [n, f], 0 or 1
            self.densities[layer] = float(chosen.mean(dtype=torch.float32))
        return block.hidden * chosen

    def scores(self, layer: int, block: Block) -> Tensor:
        """What the selector of a layer goes by, [n, f]."""
        selector = self.selectors[layer]
        if isinstance(selector, Sketch):
            return self._sketch(layer, self._ahead(layer, selector.lookahead, block), block)
        if isinstance(selector, LowRank):
            a, b, bias = (self._known[f"{layer}.{name}"] for name in ("a", "b", "bias"))
            middle = self._ahead(layer, selector.lookahead, block).to(self._dtype) @ a.T  # [n, r]
            if selector.hidden == "relu":
                middle = middle.relu()
            return middle @ b + bias
        return (block.hidden if isinstance(selector, Oracle) else block.gate).abs()  # a copy

    def _sketch(self, layer: int, y: Tensor, block: Block) -> Tensor:
        c, p = self._config, f"layers.{layer}."
        up = block.decoder.linear(f"{p}up", y, self._known[f"{layer}.up"])  # [n, f]
        if c.gated:
            gate = block.decoder.linear(f"{p}gate", y, self._known[f"{layer}.gate"])  # [n, f]
            return gated(activate(gate, c), up, c).abs_()
        return up - c.activation_threshold if c.exact_zeros else activate(up, c).abs_()

    def _ahead(self, layer: int, distance: int, block: Block) -> Tensor:
        """What a selector reads: the layer's norm of what enters the MLP `distance` layers before, [n, d]."""
        if min(distance, layer) == 0:
            return block.y
        x = block.inputs[layer - min(distance, layer)]
        return block.decoder.norm(f"layers.{layer}.mlp_norm", x) if self._config.pre_norm else x

    def _follow(self, layer: int, scores: Tensor, density: float) -> None:
        flat = scores.reshape(-1)[
            :: max(1, scores.numel() // SAMPLE) | 1
        ]  # odd: no neuron is always left out
        rank = min(max(round((1 - density) * len(flat)), 1), len(flat))
        found = float(flat.kthvalue(rank).values)
        before = self.thresholds[layer]
        self.thresholds[layer] = found if before == -math.inf else before + RATE * (found - before)
