"""The weights as a codec holds them: float32 values, and the codes that leading bits are read from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.codecs import Encoded, decode, embed_codec, encode, mlp_codec, roundtrip
from dejavu.errors import NumericsError
from dejavu.models.tensors import tensor_shapes
from dejavu.nested import LEADING_BITS, estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.codecs import Codec
    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights

    Array = NDArray[np.float32]

_ROWS = {"q.weight", "k.weight", "v.weight"}  # bundled by row
_COLUMNS = {"o.weight", "down.weight"}  # bundled by column
_MLP = {"gate.weight", "up.weight", "down.weight"}
_SKETCHED = {"gate.weight", "up.weight", "embed.weight", "head.weight"}  # by row, perhaps by leading bits
_BLOCK_ROWS = 1024


class Tensors:
    """All tensors of a model by name, float32, rounded as bundles of `codec` hold them.

    Raises:
        NumericsError: a weight is NaN or infinite; names the tensor.
    """

    def __init__(self, config: ModelConfig, weights: Weights, codec: Codec) -> None:
        self._codec = codec
        self._layers = config.n_layers
        self._values: dict[str, Array] = {}
        self._codes: dict[str, Encoded] = {}
        self._estimates: dict[tuple[str, int], Array] = {}
        for name in tensor_shapes(config):
            values = weights.read(name)
            if not np.isfinite(values).all():
                raise NumericsError(f"{name} holds NaN or infinity", fix="fetch or export the model again")
            self._values[name] = self._round(name, values)

    def __getitem__(self, name: str) -> Array:
        return self._values[name]

    def leading(self, name: str, bits: int) -> Array:
        """What the leading `bits` of each weight say, in the shape of the tensor; see `dejavu.nested`."""
        if (name, bits) not in self._estimates:
            self._estimates[name, bits] = estimate(self._codes[name], bits)
        return self._estimates[name, bits]

    def forget_leading(self) -> None:
        """Drop what `leading` keeps."""
        self._estimates.clear()

    def clear(self) -> None:
        """Drop all weights."""
        self._values.clear()
        self._codes.clear()
        self._estimates.clear()

    def _round(self, name: str, values: Array) -> Array:
        """In rows of length d_model (head: embed_dim)."""
        part = ".".join(name.split(".")[-2:])
        if part in ("embed.weight", "head.weight", "o.weight"):
            codec = embed_codec(self._codec)
        elif part in _MLP:
            codec = mlp_codec(self._codec, int(name.split(".")[1]), self._layers)
        else:
            codec = self._codec
        if part in _SKETCHED and codec in LEADING_BITS:
            self._codes[name] = encoded = _encode(codec, values)
            return decode(encoded)
        if part in _ROWS | _SKETCHED:
            return roundtrip(codec, values)
        if part in _COLUMNS:
            return np.ascontiguousarray(roundtrip(codec, values.T).T)
        return values


def _encode(codec: Codec, rows: Array) -> Encoded:
    """`encode`, in blocks of rows so that intermediate arrays stay small."""
    parts = [encode(codec, rows[i : i + _BLOCK_ROWS]) for i in range(0, len(rows), _BLOCK_ROWS)]
    codes = np.concatenate([part.codes for part in parts])
    scales = np.concatenate([part.scales for part in parts if part.scales is not None])
    mins = [part.mins for part in parts if part.mins is not None]
    return Encoded(codec, rows.shape[1], codes, scales, np.concatenate(mins) if mins else None)
