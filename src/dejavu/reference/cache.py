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

    Args:
        config: the model.
        kv_dtype: how keys and values are rounded.
    """

    def __init__(self, config: ModelConfig, kv_dtype: KvDtype) -> None:
        self._kv_dtype = kv_dtype
        self.length = 0
        shape = (config.n_layers, _INITIAL, config.n_kv_heads, config.head_dim)
        self._keys, self._values = np.empty(shape, np.float32), np.empty(shape, np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held (float32, whatever the rounding)."""
        return self._keys.nbytes + self._values.nbytes

    def put(
        self, layer: int, start: int, keys: NDArray[np.float32], values: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Write `keys` and `values` [t, n_kv_heads, head_dim] at position `start`.

        Returns:
            Keys and values of all positions up to there, each [start + t, n_kv_heads, head_dim].
        """
        stop = start + len(keys)
        while stop > self._keys.shape[1]:
            self._keys = np.concatenate([self._keys, np.empty_like(self._keys)], axis=1)
            self._values = np.concatenate([self._values, np.empty_like(self._values)], axis=1)
        self._keys[layer, start:stop] = round_kv(self._kv_dtype, keys)
        self._values[layer, start:stop] = round_kv(self._kv_dtype, values)
        return self._keys[layer, :stop], self._values[layer, :stop]

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises `InputError` if there are fewer."""
        if not 0 <= length <= self.length:
            raise InputError(f"cannot cut a sequence of {self.length} tokens to {length}")
        self.length = length

    def fork(self) -> ReferenceCache:
        """A copy."""
        copy = object.__new__(ReferenceCache)
        copy._kv_dtype, copy.length = self._kv_dtype, self.length
        copy._keys, copy._values = self._keys.copy(), self._values.copy()
        return copy
