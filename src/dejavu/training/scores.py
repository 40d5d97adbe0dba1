"""Scores of selectors over traces: what `calibrate` sets thresholds on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.codecs import encode, mlp_codec
from dejavu.errors import InputError
from dejavu.nested import estimate, leading_bits
from dejavu.plan import LowRank, Oracle, Products, Sketch, Threshold
from dejavu.reference.selection import low_rank_scores, products_scores, sketch_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.codecs import Codec, Encoded
    from dejavu.executor import Trace
    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights
    from dejavu.plan import HeadSelector, NeuronSelector
    from dejavu.training.inputs import BlockInputs

    Array = NDArray[np.float32]


class Scores:
    """Computes scores of one model.

    Args:
        config: the model.
        weights: its own tensors, without second copies of neurons; sketches read gate and up.
        codec: in which the weights are held; sketches go by what that is in their layer (`mlp_codec`).
        inputs: computes what selectors read.
    """

    def __init__(self, config: ModelConfig, weights: Weights, codec: Codec, inputs: BlockInputs) -> None:
        self._config = config
        self._weights = weights
        self._codec = codec
        self._inputs = inputs
        self._codes: dict[str, Encoded] = {}
        self._estimates: dict[tuple[str, int], Array] = {}

    def neurons(self, selector: NeuronSelector, trace: Trace, layer: int) -> Array:
        """Scores of all neurons of `layer`, [t, f]."""
        if isinstance(selector, Oracle):
            return np.asarray(np.abs(trace.hidden[layer]))
        if isinstance(selector, Threshold):
            return np.asarray(np.abs(trace.gate[layer]))
        if isinstance(selector, LowRank):
            return low_rank_scores(selector, self._inputs(trace, layer, "neurons", selector.lookahead))
        if isinstance(selector, Products):
            y = self._inputs(trace, layer, "neurons", selector.lookahead)  # [t, d]
            return products_scores(selector, y, self._config)
        if isinstance(selector, Sketch):
            y = self._inputs(trace, layer, "neurons", selector.lookahead)  # [t, d]
            gate = self._product(layer, "gate", selector.bits, y) if self._config.gated else None
            up = self._product(layer, "up", selector.bits, y)  # [t, f]
            return sketch_scores(gate, up, self._config)
        raise InputError(f"selector {selector.kind} has no scores to calibrate")

    def heads(self, selector: HeadSelector, trace: Trace, layer: int) -> Array:
        """Scores of all heads of `layer`, [t, H]."""
        if isinstance(selector, Oracle):
            return np.asarray(trace.head_norm[layer])
        if isinstance(selector, LowRank):
            return low_rank_scores(selector, self._inputs(trace, layer, "heads", selector.lookahead))
        raise InputError(f"selector {selector.kind} has no scores to calibrate")

    def _product(self, layer: int, part: str, bits: int, y: Array) -> Array:
        """Inputs y [t, d] times the leading bits of a matrix [f, d], with its exact bias."""
        name = f"layers.{layer}.{part}"
        product: Array = y @ self._leading(layer, name, bits).T
        return product + self._weights.read(f"{name}.bias") if part in self._config.biases else product

    def _leading(self, layer: int, name: str, bits: int) -> Array:
        """A matrix by its leading bits, [f, d]."""
        if (name, bits) not in self._estimates:
            if name not in self._codes:
                codec = mlp_codec(self._codec, layer, self._config.n_layers)
                leading_bits(codec)  # refuses a codec that has none
                self._codes[name] = encode(codec, self._weights.read(f"{name}.weight"))
            self._estimates[name, bits] = estimate(self._codes[name], bits)
        return self._estimates[name, bits]
