"""Rows of weights, packed and decoded, for the tests of the row kernels."""

from __future__ import annotations

import numpy as np

from dejavu import _core, codecs

ISAS = [isa for isa in ("portable", "avx2", "avx512") if isa in _core.isas()]
WIDTHS = [1, 31, 32, 33, 64, 100, 511, 512, 513, 576, 896, 1024, 1100, 2048]
POISON = np.float32(np.nan)


WALL = -12345


class Walled:
    """Hands out arrays that begin `skew` elements beyond a cache line, with walls before and after them.

    The reads of a kernel may be aligned to nothing, and it may write nothing but its output.
    """

    def __init__(self, skew: int) -> None:
        self._skew = skew
        self._rooms: list[tuple[np.ndarray, int, int]] = []

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """A copy of `values` (of four bytes each) between walls."""
        assert values.itemsize == 4
        room = np.full(values.size + 64, WALL, values.dtype)
        begin = 16 + -room.ctypes.data % 64 // 4 + self._skew
        room[begin : begin + values.size] = values.ravel()
        self._rooms.append((room, begin, begin + values.size))
        return room[begin : begin + values.size].reshape(values.shape)

    def check(self) -> None:
        """All walls are whole."""
        for room, begin, end in self._rooms:
            assert (room[:begin] == WALL).all()
            assert (room[end:] == WALL).all()


def weights(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    w = random.standard_normal(shape, np.float32) * np.exp(
        random.standard_normal((*shape[:-1], 1), np.float32)
    )
    w[0, 0, : min(40, shape[-1])] = 0  # a group whose scale is zero
    return w


def packed(codec: str, w: np.ndarray, offset: int = 0) -> np.ndarray:
    """Packed bytes at an address `offset` bytes beyond an aligned one."""
    size = _core.bundle_bytes(codec, w.shape[2], w.shape[1]) * w.shape[0]
    room = np.full(size + 128, 0xA5, np.uint8)
    start = -room.ctypes.data % 64 + offset
    out = room[start : start + size]
    _core.pack(codec, w, out, 2)
    assert (room[start + size :] == 0xA5).all()
    return out


def decoded(codec: str, w: np.ndarray) -> np.ndarray:
    return codecs.roundtrip(codec, w.reshape(-1, w.shape[2])).reshape(w.shape)
