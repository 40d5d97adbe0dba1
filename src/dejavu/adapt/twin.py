"""`Twin`: a model with another activation, one that makes exact zeros, in the place of its own.

It is trained with a threshold per layer. A config.json has one activation for all layers, so the thresholds go elsewhere:

- "relu" and "drelu": into biases of the gate (ungated: of up), relu(g - t) = relu(g + b) with b = -t;
- "shifted" and "fatrelu": into the weights, the file's one threshold being T. With s = T / t the gate is multiplied by s
  and down divided by s: both activations give s h for s g and the threshold s t.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import UnsupportedModelError
from dejavu.models.folder_writer import config_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dejavu.adapt.options import ActivationName
    from dejavu.models.config import Activation, ModelConfig

    Array = NDArray[np.float32]
    Arrays = Mapping[str, Array]

_TRAINED: dict[str, Activation] = {
    "relu": "shifted_relu",
    "shifted": "shifted_relu",
    "fatrelu": "fatrelu",
    "drelu": "drelu",
}
_BY_BIASES = ("relu", "drelu")

LEAST = 2.0**-6
"""Least threshold that goes into weights: these are multiplied by no more than the ratio of two thresholds."""


@dataclass(frozen=True)
class Twin:
    """A model to be trained with thresholds per layer.

    Attributes:
        name: of its activation.
        config: as it is trained; the threshold of its activation is each layer's own.
    """

    name: ActivationName
    config: ModelConfig

    @classmethod
    def of(cls, config: ModelConfig, name: ActivationName) -> Twin:
        """The twin of a model.

        Raises:
            UnsupportedModelError: a config.json of its family cannot say what the twin computes.
        """
        biases = config.biases
        if name == "drelu" and not config.gated:
            raise UnsupportedModelError(
                f"{config.family}: drelu is relu(gate) * relu(up), and the MLPs have no gate",
                fix="adapt with --activation relu",
            )
        if name in _BY_BIASES:
            biases += tuple(x for x in _linears(config) if x not in biases)
        elif _opener(config) in biases:
            raise UnsupportedModelError(
                f"{config.family}: {_opener(config)} has biases; {name} holds its thresholds in weights alone",
                fix="adapt with --activation relu",
            )
        kind = _TRAINED[name]
        twin = cls(
            name, dataclasses.replace(config, activation=kind, activation_threshold=0.0, biases=biases)
        )
        try:
            config_json(twin.written(1.0))
        except UnsupportedModelError as error:
            fix = "adapt with --activation " + ("shifted" if name in _BY_BIASES else "keep")
            raise UnsupportedModelError(f"a twin of it cannot be written: {error}", fix=fix) from error
        return twin

    @property
    def least_threshold(self) -> float:
        """That a layer can have."""
        return -math.inf if self.name in _BY_BIASES else LEAST

    def written(self, threshold: float) -> ModelConfig:
        """What config.json says, `threshold` being that of all layers."""
        if self.name == "relu":
            return dataclasses.replace(self.config, activation="relu")
        if self.name == "drelu":
            return self.config
        return dataclasses.replace(self.config, activation_threshold=threshold)

    def publish(self, thresholds: Sequence[float], values: Arrays) -> tuple[ModelConfig, dict[str, Array]]:
        """The model of config.json and its tensors, which compute what the twin does with its thresholds.

        Args:
            thresholds: of each layer.
            values: the tensors of `config`, float32.
        """
        tensors, common = dict(values), 0.0 if self.name in _BY_BIASES else _geometric_mean(thresholds)
        for layer, threshold in enumerate(thresholds):
            opener, down = (f"layers.{layer}.{name}" for name in (_opener(self.config), "down"))
            if self.name in _BY_BIASES:
                tensors[f"{opener}.bias"] = tensors[f"{opener}.bias"] - np.float32(threshold)
            else:
                scale = np.float32(common / threshold)
                tensors[f"{opener}.weight"] = tensors[f"{opener}.weight"] * scale
                tensors[f"{down}.weight"] = tensors[f"{down}.weight"] / scale
        return self.written(common), tensors


def _opener(config: ModelConfig) -> str:
    """The linear that the activation is applied to."""
    return "gate" if config.gated else "up"


def _linears(config: ModelConfig) -> tuple[str, ...]:
    """Of the MLP."""
    return ("gate", "up", "down") if config.gated else ("up", "down")


def _geometric_mean(values: Sequence[float]) -> float:
    return float(np.float32(math.exp(sum(map(math.log, values)) / len(values))))
