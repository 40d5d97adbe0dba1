"""What one call of the executor carries from layer to layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dejavu.plan import AccessPlan
    from dejavu.reference.cache import ReferenceCache

    Array = NDArray[np.float32]


@dataclass
class Run:
    """One pass of t tokens of one sequence through all layers."""

    positions: NDArray[np.int64]
    """[t]"""
    cache: ReferenceCache
    plan: AccessPlan | None = None
    """None: dense."""
    write: bool = True
    """Compute keys and values of all heads, whatever the plan's K/V policy."""
    attn_input: list[Array] = field(default_factory=list)
    """Per layer so far: the residual stream entering the attention block [t, d]."""
    mlp_input: list[Array] = field(default_factory=list)
    """Per layer so far: the residual stream entering the MLP [t, d]."""
    neurons: list[float] = field(default_factory=list)
    """Per layer so far: the mean density."""
    heads: list[float] = field(default_factory=list)
    """Per layer so far: the mean density."""
    trace: dict[str, list[Array]] | None = None
    """Where `ReferenceExecutor.trace` collects what each layer computes."""

    def note(self, name: str, values: Array) -> None:
        """Keep `values` of a layer, in a trace."""
        if self.trace is not None:
            self.trace.setdefault(name, []).append(values)
