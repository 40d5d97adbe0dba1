"""Weights of a model with some tensors replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]


class Changed:
    """Weights with some tensors replaced, or added."""

    def __init__(self, weights: Any, tensors: dict[str, Array]) -> None:
        self._weights, self._tensors = weights, tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weights, name)

    def names(self) -> Collection[str]:
        return self._weights.names()  # type: ignore[no-any-return]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        return self._tensors[name] if name in self._tensors else self._weights.read(name, start, stop)
