"""Bytes that one token reads of a layer, predictors included: what the search spends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dejavu.codecs import embed_codec, mlp_codec
from dejavu.plan import Dense, LowRank, Products, Sketch, Threshold

if TYPE_CHECKING:
    from dejavu.codecs import Codec
    from dejavu.models.config import ModelConfig
    from dejavu.plan import Compensator, HeadSelector, NeuronSelector

_CODE_BITS = {"f32": 32.0, "bf16": 16.0, "int8": 8.0, "int4": 4.0}
_SCALE_BITS = {"f32": 0.0, "bf16": 0.0, "int8": 0.5, "int4": 1.0}
"""Per weight: float16 scales (int4: and minima) of groups of 32."""
_LOW_RANK_BITS = 8.5, 4.5
"""Of the two arrays of a low-rank map."""


@dataclass(frozen=True)
class Cost:
    """Bytes touched in one layer of `config` with weights held in `codec`, per token.

    As the engine holds them, o and the MLPs of the first and the last layer may be in a finer codec. `leading` bits of int8
    lie apart for sketches, whatever number of them is used.
    """

    config: ModelConfig
    codec: Codec
    leading: int = 4

    def neurons(self, layer: int, selector: NeuronSelector, density: float) -> float:
        """Of the MLP of `layer`, when `selector` selects the share `density`."""
        f, first = self.config.base_neurons, 2 if self.config.gated else 1  # rows of gate and up
        codec = mlp_codec(self.codec, layer, self.config.n_layers)
        row = self._row(codec)
        if isinstance(selector, Dense):
            return f * (first + 1) * row
        if isinstance(selector, Sketch):
            bits = self.leading if codec == "int8" else 4
            lead = (bits + _SCALE_BITS[codec]) / 8 * self.config.d_model  # of one row
            rest = 0.0
            if codec == "int8" and selector.values == "exact":
                rest = (8 - bits + _SCALE_BITS["int8"]) / 8 * self.config.d_model
            return f * first * lead + density * f * (first * rest + row)
        if isinstance(selector, Threshold):  # the first row of every neuron, the others of the selected
            return f * row + density * f * first * row
        return self._predictor(selector, f) + density * f * (first + 1) * row

    def heads(self, selector: HeadSelector, density: float) -> float:
        """Of the attention's weights, K/V rows always counted."""
        c = self.config
        row, o_row = self._row(self.codec), self._row(embed_codec(self.codec))
        own, shared = c.n_heads * c.head_dim * (row + o_row), 2 * c.n_kv_heads * c.head_dim * row
        share = 1.0 if isinstance(selector, Dense) else density
        return self._predictor(selector, c.n_heads) + share * own + shared

    def compensator(self, compensator: Compensator) -> float:
        """Of the arrays of a compensator."""
        d = self.config.d_model
        return self._low_rank(compensator.rank, d)

    def _row(self, codec: Codec) -> float:
        return self.config.d_model * (_CODE_BITS[codec] + _SCALE_BITS[codec]) / 8

    def _predictor(self, selector: NeuronSelector | HeadSelector, n: int) -> float:
        if isinstance(selector, Products):
            return self._low_rank(selector.rank, len(selector.bias)) + 4 * len(selector.spread)
        return self._low_rank(selector.rank, n) if isinstance(selector, LowRank) else 0.0

    def _low_rank(self, rank: int, n: int) -> float:
        a, b = _LOW_RANK_BITS
        return rank * (self.config.d_model * a + n * b) / 8 + 4 * n
