"""The reference executor: plain NumPy in float32. It is the specification of the native engine."""

from __future__ import annotations

from dejavu.reference.executor import ReferenceExecutor

__all__ = ["ReferenceExecutor"]
