"""How long the down row of each neuron is: what abs(h) is multiplied with to say how much a neuron adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.models.weights import COLUMN_STEP

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.models.weights import Weights

    Array = NDArray[np.float32]

_PIECE = 4 << 20
"""Weights that are read at a time, about."""


def down_norms(weights: Weights, layer: int) -> Array:
    """The Euclidean norm of each neuron's down row in a layer, [f].

    Of the model's own float32 values, before a codec rounds them: scores and thresholds do not depend on the codec, and
    every executor has the same norms to the last bit.
    """
    name = f"layers.{layer}.down.weight"
    d, f = weights.shape(name)
    step = max(1, _PIECE // d // COLUMN_STEP) * COLUMN_STEP
    found = [column_norms(weights.read_columns(name, i, min(i + step, f))) for i in range(0, f, step)]
    return np.concatenate(found)


def column_norms(down: Array) -> Array:
    """Euclidean norms of the columns of a down matrix [d, n], summed in float64: [n]."""
    return np.asarray(np.sqrt(np.square(down, dtype=np.float64).sum(axis=0)), np.float32)
