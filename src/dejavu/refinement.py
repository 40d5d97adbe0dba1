"""Second helpings for the few neurons whose rounding a model notices.

Some MLPs have a handful of neurons with activations a thousand times larger than the rest (the source of "massive
activations"; Sun et al., 2024). The rounding of such a neuron's down column, times that activation, outweighs the rounding
of everything else. `refine` finds candidates from the weights alone and appends a copy of each whose down column is
what rounding left over: ``h * Q(d) + h * Q(d - Q(d))``. The codec and the kernels stay as they are; the MLP has a few more
neurons.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from dejavu.codecs import Codec, mlp_codec, roundtrip
from dejavu.models.weights import COLUMN_STEP

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights

REFINED = 16
"""Neurons per layer; a multiple of the kernels' sixteen rows."""
_SMALLEST = 1024
"""Narrower MLPs are left alone."""


def refine(config: ModelConfig, weights: Weights, codec: Codec) -> tuple[ModelConfig, Weights]:
    """The model with `REFINED` more neurons per layer where `codec` is int8 or int4; otherwise as it is."""
    if codec not in ("int8", "int4") or config.d_ff < _SMALLEST:
        return config, weights
    wide = dataclasses.replace(config, d_ff=config.d_ff + REFINED, refined=REFINED)
    return wide, RefinedWeights(config, weights, codec)


class RefinedWeights:
    """The tensors of `weights` with the MLPs extended; see `dejavu.models.weights.Weights`."""

    def __init__(self, config: ModelConfig, weights: Weights, codec: Codec) -> None:
        self._config = config
        self._weights = weights
        self._codec = codec
        self._chosen: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}

    @property
    def fingerprint(self) -> str:
        """That of the model's own tensors."""
        return self._weights.fingerprint

    def names(self) -> Collection[str]:
        """Names of all tensors."""
        return self._weights.names()

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape with the neurons that were added."""
        shape = self._weights.shape(name)
        axis = self._axis(name)
        return shape if axis is None else tuple(n + REFINED * (i == axis) for i, n in enumerate(shape))

    def source_type(self, name: str) -> str:
        """Storage type in the file."""
        return self._weights.source_type(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows ``start:stop``, as `Weights.read`."""
        axis = self._axis(name)
        if axis is None:
            return self._weights.read(name, start, stop)
        if axis == 1:  # down: whole rows, with the columns that were added
            added = self._added(name)[1][slice(start, stop)]  # [rows, REFINED]
            return np.concatenate([self._weights.read(name, start, stop), added], axis=1)
        count = self._config.d_ff
        stop = count + REFINED if stop is None else stop
        parts = [self._weights.read(name, start, min(stop, count))] if start < count else []
        if stop > count:
            parts += [
                self._weights.read(name, i, i + 1)
                for i in self._added(name)[0][max(start - count, 0) : stop - count]
            ]
        return np.concatenate(parts)

    def read_columns(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Columns ``start:stop``, as `Weights.read_columns`."""
        if self._axis(name) != 1:
            return self._weights.read_columns(name, start, stop)
        count = self._config.d_ff
        parts = [self._weights.read_columns(name, start, min(stop, count))] if start < count else []
        if stop > count:
            parts.append(self._added(name)[1][:, max(start - count, 0) : stop - count])
        return np.ascontiguousarray(np.concatenate(parts, axis=1))

    def release(self) -> None:
        """Let the OS drop pages, and forget the layer that was read."""
        self._weights.release()

    def close(self) -> None:
        """Close the model's own tensors."""
        self._weights.close()

    def _axis(self, name: str) -> int | None:
        """Which axis of the tensor counts neurons."""
        part = name.partition(".")[2].partition(".")[2]
        if part in ("gate.weight", "up.weight", "gate.bias", "up.bias"):
            return 0
        return 1 if part == "down.weight" else None

    def _added(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """For the layer of tensor `name`: the chosen neurons, and their left-over down columns [d, REFINED]."""
        layer = name[: name.index(".", name.index(".") + 1) + 1]
        if layer not in self._chosen:
            self._chosen[layer] = self._choose(layer)
        return self._chosen[layer]

    def _choose(self, layer: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """By how large a neuron's contribution can get: norms of its rows, and how far gate and up agree."""
        weights, count = self._weights, self._config.d_ff
        norm = weights.read(f"{layer}mlp_norm.weight")  # [d]
        gated = f"{layer}gate.weight" in weights
        scores = []
        for start in range(0, count, COLUMN_STEP):
            stop = min(start + COLUMN_STEP, count)
            up = weights.read(f"{layer}up.weight", start, stop) * norm  # [n, d]
            down = weights.read_columns(f"{layer}down.weight", start, stop)  # [d, n]
            size = np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)  # [n]
            if gated:
                gate = weights.read(f"{layer}gate.weight", start, stop) * norm
                length = np.linalg.norm(gate, axis=1)
                agreement = np.abs((gate * up).sum(axis=1)) / np.maximum(
                    np.linalg.norm(up, axis=1) * length, 1e-30
                )
                size *= length * (0.1 + agreement)
            scores.append(size)
        chosen = np.sort(np.argsort(-np.concatenate(scores), kind="stable")[:REFINED])
        columns = []
        for i in chosen:
            start = int(i) // COLUMN_STEP * COLUMN_STEP
            block = weights.read_columns(f"{layer}down.weight", start, min(start + COLUMN_STEP, count))
            columns.append(block[:, i - start])
        rows = np.stack(columns)  # [REFINED, d]
        codec = mlp_codec(self._codec, int(layer.split(".")[1]), self._config.n_layers)
        return chosen, np.ascontiguousarray((rows - roundtrip(codec, rows)).T)
