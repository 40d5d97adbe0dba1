"""What selectors read: y = norm_l(x_m), the one definition of look-ahead (m = l - min(distance, l))."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dejavu.reference.ops import layer_norm, rms_norm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dejavu.executor import Trace
    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights

    Array = NDArray[np.float32]

Block = Literal["neurons", "heads"]
"""The MLP or the attention of a layer."""

_NORM = {"neurons": "mlp_norm", "heads": "attn_norm"}


class BlockInputs:
    """Computes y of any layer from a `Trace`.

    Args:
        config: the model.
        weights: its norms are read here.
    """

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self._config = config
        parts = () if not config.pre_norm else ("weight",) if config.norm == "rms" else ("weight", "bias")
        self._norms = {
            (layer, block): [weights.read(f"layers.{layer}.{name}.{part}") for part in parts]
            for layer in range(config.n_layers)
            for block, name in _NORM.items()
        }

    def __call__(self, trace: Trace, layer: int, block: Block, lookahead: int = 0) -> Array:
        """The input of a selector of `layer` at distance `lookahead`, float32 [t, d]."""
        streams = trace.mlp_input if block == "neurons" else trace.attn_input  # [L, t, d]
        x: Array = streams[layer - min(lookahead, layer)]  # [t, d]
        if not self._config.pre_norm:
            return x
        norm = self._norms[layer, block]
        if self._config.norm == "rms":
            return rms_norm(x, norm[0], self._config.norm_eps)
        return layer_norm(x, norm[0], norm[1], self._config.norm_eps)
