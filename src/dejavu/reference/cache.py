"""Keys and values of one sequence, rounded when they are written and held as float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.codecs import roundtrip
from dejavu.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.executor import KvDtype
    from dejavu.models.config import ModelConfig

_INITIAL = 64  # positions; doubled as the sequence grows


def round_kv(kind: KvDtype, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a cache of dtype `kind` gives back for `values` [t, n_kv_heads, head_dim]."""
    if kind == "f16":
        return values.astype(np.float16).astype(np.float32)
    if kind == "bf16":
        return roundtrip("bf16", values.reshape(len(values), -1)).reshape(values.shape)
    if kind == "int8":
        scale = np.abs(values).max(axis=-1, keepdims=True) / np.float32(127)  # [t, n_kv_heads, 1]
        codes = np.rint(np.divide(values, scale, out=np.zeros_like(values), where=scale > 0))
        return np.asarray(scale * codes, np.float32)
    return values


class ReferenceCache:
    """A `dejavu.executor.Cache`.

    Where a plan leaves out keys and values, the last positions of a K/V head are missing; the inputs to compute them from
    are kept.

    Args:
        config: the model.
        kv_dtype: how keys and values are rounded.
    """

    def __init__(self, config: ModelConfig, kv_dtype: KvDtype) -> None:
        self._kv_dtype = kv_dtype
        self.length = 0
        shape = (config.n_layers, _INITIAL, config.n_kv_heads, config.head_dim)
        self._keys, self._values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._filled = np.zeros((config.n_layers, config.n_kv_heads), np.int64)  # positions held
        self._inputs: dict[tuple[int, int], NDArray[np.float32]] = {}  # (layer, position) -> [d]

    @property
    def nbytes(self) -> int:
        """Bytes of memory held (float32, whatever the rounding)."""
        return self._keys.nbytes + self._values.nbytes + sum(x.nbytes for x in self._inputs.values())

    def filled(self, layer: int) -> NDArray[np.int64]:
        """Positions whose keys and values are held, per K/V head [n_kv_heads]."""
        return np.asarray(self._filled[layer])

    def put(
        self,
        layer: int,
        start: int,
        keys: NDArray[np.float32],
        values: NDArray[np.float32],
        groups: NDArray[np.bool_],
    ) -> None:
        """Write `keys` and `values` [t, n_kv_heads, head_dim] of the K/V heads `groups` [n_kv_heads] from `start` on."""
        stop = start + len(keys)
        while stop > self._keys.shape[1]:
            self._keys = np.concatenate([self._keys, np.zeros_like(self._keys)], axis=1)
            self._values = np.concatenate([self._values, np.zeros_like(self._values)], axis=1)
        self._keys[layer][start:stop, groups] = round_kv(self._kv_dtype, keys)[:, groups]
        self._values[layer][start:stop, groups] = round_kv(self._kv_dtype, values)[:, groups]
        self._filled[layer, groups] = stop
        for position in range(start, self._filled[layer].min()):
            self._inputs.pop((layer, position), None)

    def get(self, layer: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of the first `stop` positions, each [stop, n_kv_heads, head_dim]."""
        return self._keys[layer, :stop], self._values[layer, :stop]

    def keep_input(self, layer: int, position: int, x: NDArray[np.float32]) -> None:
        """Keep the input [d] that missing keys and values will be computed from."""
        self._inputs[layer, position] = x

    def kept_input(self, layer: int, position: int) -> NDArray[np.float32]:
        """What `keep_input` was given [d]."""
        return self._inputs[layer, position]

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises `InputError` if there are fewer."""
        if not 0 <= length <= self.length:
            raise InputError(f"cannot cut a sequence of {self.length} tokens to {length}")
        self.length = length
        self._filled = np.minimum(self._filled, length)
        self._inputs = {key: x for key, x in self._inputs.items() if key[1] < length}

    def fork(self) -> ReferenceCache:
        """A copy."""
        copy = object.__new__(ReferenceCache)
        copy._kv_dtype, copy.length = self._kv_dtype, self.length
        copy._keys, copy._values = self._keys.copy(), self._values.copy()
        copy._filled, copy._inputs = self._filled.copy(), dict(self._inputs)
        return copy
