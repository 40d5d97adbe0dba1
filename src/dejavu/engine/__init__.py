"""The native executor: packing of weights into bundles, the packed file, and the C++ engine over it."""

from __future__ import annotations

from dejavu.engine.native import NativeExecutor
from dejavu.engine.synthetic import synthetic

__all__ = ["NativeExecutor", "synthetic"]
