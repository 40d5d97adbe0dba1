"""Labels: which neurons and heads count as active for a token. The ground truth of recall and precision.

Neurons of models with exact zeros (ReLU and its kin): h is not zero. Other neurons: abs(h) above a threshold of their
layer, set so that a share `density` of all (token, neuron) pairs is active. Heads: the `density` share of the layer's heads
with the largest output norms at this token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.plan import Pick
from dejavu.reference.selection import highest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.models.config import ModelConfig
    from dejavu.training.quantiles import Quantiles

    Array = NDArray[np.float32]
    Mask = NDArray[np.bool_]


def label_threshold(config: ModelConfig, sizes: Quantiles, density: float) -> float:
    """What abs(h) of an active neuron exceeds, given all abs(h) of its layer; 0 where there are exact zeros."""
    return 0.0 if config.exact_zeros else sizes.threshold(density)


def active_neurons(hidden: Array, threshold: float) -> Mask:
    """From hidden values [t, f] to bool [t, f]."""
    return np.asarray(np.abs(hidden) > np.float32(threshold))


def active_heads(head_norm: Array, density: float) -> Mask:
    """From norms [t, H] to bool [t, H] with ceil(density * H) true per token."""
    return largest(head_norm, density)


def largest(scores: Array, density: float) -> Mask:
    """The share `density` of the largest of each row, at least one: scores [t, n] -> bool [t, n].

    Among equal scores the lower index, as plans pick.
    """
    return highest(scores, Pick(density=density).count(scores.shape[1]))
