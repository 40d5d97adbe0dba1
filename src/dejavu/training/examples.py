"""What predictors learn from: normed inputs, sizes and labels of pieces of text, through the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dejavu.training.labels import active_heads, active_neurons, label_threshold
from dejavu.training.quantiles import Quantiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dejavu.executor import Executor, Trace, TraceField
    from dejavu.training.inputs import Block, BlockInputs
    from dejavu.training.stream import Piece

    Array = NDArray[np.float32]
    Mask = NDArray[np.bool_]
    _Fields = dict[Block, tuple[TraceField, ...]]


_INPUTS: _Fields = {"neurons": ("mlp_input",), "heads": ("attn_input", "head_norm")}
_ALL: _Fields = {**_INPUTS, "neurons": ("mlp_input", "hidden")}


@dataclass(frozen=True)
class Target:
    """What is predicted: neurons or heads, by predictors of `rank`, the label being the share `density`."""

    block: Block
    rank: int
    density: float


class Examples:
    """Makes inputs, sizes and labels of any layer and block.

    Args:
        executor: the model.
        inputs: computes what predictors read.
        lookahead: distance of it.
        targets: what is predicted.
        pieces: text that fixes the labels' thresholds and the scale of the inputs.
    """

    def __init__(
        self,
        executor: Executor,
        inputs: BlockInputs,
        pieces: Sequence[Piece],
        targets: tuple[Target, ...],
        lookahead: int,
    ) -> None:
        self.config = executor.config
        self.targets = targets
        self._executor = executor
        self._inputs = inputs
        self._lookahead = lookahead
        self._densities = {target.block: target.density for target in targets}
        layers = range(self.config.n_layers)
        sizes = [Quantiles() for _ in layers]
        squares = {target.block: np.zeros((len(layers), self.config.d_model)) for target in targets}  # [L, d]
        for piece in pieces:
            trace = self._trace(piece, fields=_ALL)
            for layer in layers:
                if "neurons" in squares:
                    sizes[layer].add(np.abs(trace.hidden[layer]))
                for block, total in squares.items():
                    total[layer] += np.square(inputs(trace, layer, block, lookahead)).sum(axis=0)
        share = self._densities.get("neurons", 1.0)
        self._thresholds = [
            label_threshold(self.config, size, share) if size.count else 0.0 for size in sizes
        ]
        count = sum(map(len, pieces))
        self.scales: dict[Block, Array] = {
            block: (1 / np.sqrt(total / count + 1e-12)).astype(np.float32) for block, total in squares.items()
        }
        """Per block [L, d]: one over the root mean square of each input dimension."""

    def of(self, pieces: Sequence[Piece]) -> Iterator[tuple[Block, int, Array, Array]]:
        """Of all tokens of `pieces`: block, layer, inputs [t, d], and sizes [t, n]: abs(h), or output norms of heads."""
        trace = self._trace(*pieces, fields=_ALL)
        for block in self.scales:
            for layer in range(self.config.n_layers):
                sizes = trace.head_norm[layer] if block == "heads" else np.abs(trace.hidden[layer])
                yield block, layer, self._inputs(trace, layer, block, self._lookahead), sizes

    def inputs_of(self, pieces: Sequence[Piece]) -> Iterator[tuple[Block, int, Array, Array]]:
        """As `of`, but for sizes what `SizeLearner` aims at: what enters the MLP [t, d]; roots of norms [t, H]."""
        trace = self._trace(*pieces, fields=_INPUTS)
        for block in self.scales:
            for layer in range(self.config.n_layers):
                x = self._inputs(trace, layer, block, self._lookahead)
                yield (
                    block,
                    layer,
                    x,
                    np.sqrt(trace.head_norm[layer])
                    if block == "heads"
                    else self._inputs(trace, layer, block),
                )

    def label(self, block: Block, layer: int, sizes: Array) -> Mask:
        """What counts as active, [t, n], of sizes [t, n]; see `labels.py`."""
        if block == "heads":
            return active_heads(sizes, self._densities[block])
        return active_neurons(sizes, self._thresholds[layer])

    def _trace(self, *pieces: Piece, fields: _Fields) -> Trace:
        return self._executor.trace(
            *pieces, want=[field for block in self._densities for field in fields[block]]
        )
