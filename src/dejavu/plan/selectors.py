"""Selectors: which neurons or heads of a layer a token touches.

A selector scores each neuron (or head) and picks by the scores. y is the input that it reads: the residual stream
entering the same kind of block (MLP or attention) `lookahead` layers before, under this layer's own norm. g, u are the
gate and up products of a neuron, act the activation, h = act(g) * u (ungated: h = act(u)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dejavu.errors import PlanError
from dejavu.plan import checks

Array = NDArray[np.float32]

MAX_LOOKAHEAD = 2


@dataclass(frozen=True)
class Dense:
    """All of them."""

    kind: ClassVar = "dense"


@dataclass(frozen=True, kw_only=True, eq=False)
class Static:
    """Always the same ones."""

    kind: ClassVar = "static"
    indices: NDArray[np.int32] = field(metadata={"stored": "int32"})
    """Ascending, [k]."""

    def __post_init__(self) -> None:
        indices = checks.array("indices", self.indices, np.int32, 1)
        if indices.size and (indices[0] < 0 or not (indices[1:] > indices[:-1]).all()):
            raise PlanError("static indices must ascend from 0 on, each once")
        object.__setattr__(self, "indices", indices)


@dataclass(frozen=True, kw_only=True)
class Pick:
    """How scores become a selection: exactly one of the two.

    `density` takes, per token, the k = max(1, ceil(density * n - 1e-9)) largest of n scores; among equal scores the
    lower index. `threshold` takes the scores strictly above it (in float32).
    """

    density: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if (self.density is None) == (self.threshold is None):
            raise PlanError("a selector needs either a density or a threshold, and not both")
        if self.density is not None:
            checks.density("density", self.density)
        else:
            checks.finite("threshold", self.threshold)

    def count(self, n: int) -> int:
        """How many of `n` the density takes (all, with a threshold)."""
        return n if self.density is None else max(1, math.ceil(self.density * n - 1e-9))


@dataclass(frozen=True, kw_only=True)
class Random(Pick):
    """A hash of (seed, layer, position, index) as the score: the floor, for analysis."""

    kind: ClassVar = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class Oracle(Pick):
    """The size of what a neuron or head contributes, computed in full: the ceiling, for analysis.

    Neurons: abs(h). Heads: L2 norm of the mixed values, before the output rows.
    """

    kind: ClassVar = "oracle"


@dataclass(frozen=True, kw_only=True)
class Threshold(Pick):
    """abs(act(g)), ungated act(u): the first row of every neuron is computed, the others for the selected."""

    kind: ClassVar = "threshold"


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank(Pick):
    """A trained predictor of two layers: ``b @ hidden(a @ y) + bias``.

    Both are rounded as they are stored, by groups of 32 along a row: `a` to int8, `b` to four bits.
    """

    kind: ClassVar = "low_rank"
    a: Array = field(metadata={"stored": "int8"})
    """[r, d_model]"""
    b: Array = field(metadata={"stored": "int8"})
    """[n, r], n neurons or heads."""
    bias: Array = field(metadata={"stored": "float32"})
    """[n]"""
    hidden: Literal["linear", "relu"] = "linear"
    lookahead: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("hidden", self.hidden, ("linear", "relu"))
        checks.whole("lookahead", self.lookahead, 0, MAX_LOOKAHEAD)
        object.__setattr__(self, "a", checks.int8_rows("a", self.a))
        object.__setattr__(self, "b", checks.leading_rows("b", self.b))
        object.__setattr__(self, "bias", checks.array("bias", self.bias, np.float32, 1))
        checks.shape("b", self.b.shape, (len(self.bias), self.rank))

    @property
    def rank(self) -> int:
        """Rows of a."""
        return len(self.a)


@dataclass(frozen=True, kw_only=True, eq=False)
class Products(Pick):
    """The mean square of h, from the products of gate and up (ungated: up) by a map of low rank, and how far it may be off.

    ``z = b @ a @ y + bias`` estimates all gates and then all ups (ungated: all ups), each with an error of standard
    deviation `spread`. Errors count as two values, one spread above and one below, alike likely:

        score = (act(g + s_g)^2 + act(g - s_g)^2) / 2 * (u^2 + s_u^2),  ungated (act(u + s_u)^2 + act(u - s_u)^2) / 2;

    dReLU has both factors of the first form. `a` and `b` are rounded as those of `LowRank`.
    """

    kind: ClassVar = "products"
    a: Array = field(metadata={"stored": "int8"})
    """[r, d_model]"""
    b: Array = field(metadata={"stored": "int8"})
    """[2 f, r], f neurons; ungated: [f, r]."""
    bias: Array = field(metadata={"stored": "float32"})
    """[2 f] or [f]"""
    spread: Array = field(metadata={"stored": "float32"})
    """[2 f] or [f], not negative."""
    lookahead: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole("lookahead", self.lookahead, 0, MAX_LOOKAHEAD)
        object.__setattr__(self, "a", checks.int8_rows("a", self.a))
        object.__setattr__(self, "b", checks.leading_rows("b", self.b))
        for name in ("bias", "spread"):
            object.__setattr__(self, name, checks.array(name, getattr(self, name), np.float32, 1))
        checks.shape("b", self.b.shape, (len(self.bias), self.rank))
        checks.shape("spread", self.spread.shape, self.bias.shape)
        if (self.spread < 0).any():
            raise PlanError("spread is negative somewhere; it is a standard deviation")

    @property
    def rank(self) -> int:
        """Rows of a."""
        return len(self.a)


@dataclass(frozen=True, kw_only=True)
class Sketch(Pick):
    """abs(act(g') * u'), g' and u' from the leading bits of the stored weights; ungated with exact zeros: u' - threshold.

    Needs weights in int8 or int4. No parameters, no training.
    """

    kind: ClassVar = "sketch"
    bits: int
    """Leading bits of the code: 2 to 5."""
    lookahead: int = 0
    values: Literal["exact", "leading"] = "exact"
    """What a selected neuron holds: act(g) * u by all bits of its weights, or act(g') * u', and no other bits of
    gate and up are read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("bits", self.bits, (2, 3, 4, 5))
        checks.whole("lookahead", self.lookahead, 0, MAX_LOOKAHEAD)
        checks.one_of("values", self.values, ("exact", "leading"))
        if self.values == "leading" and self.lookahead:
            raise PlanError(
                "a sketch that looks ahead knows no values of its layer", fix='use values "exact"'
            )


NeuronSelector = Dense | Static | Random | Oracle | Threshold | LowRank | Products | Sketch
HeadSelector = Dense | Static | Random | Oracle | LowRank
