"""What stands in for the neurons that were not selected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dejavu.plan import checks

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Compensator:
    """Adds ``bias + b @ (a @ y0)`` to the MLP's output, y0 being the block's own normed input.

    Both are rounded as they are stored, by groups of 32 along a row: `a` to int8, `b` to four bits. Rank 0 adds the
    mean alone.
    """

    kind: ClassVar = "low_rank"
    a: Array = field(metadata={"stored": "int8"})
    """[r, d_model]"""
    b: Array = field(metadata={"stored": "int8"})
    """[d_model, r]"""
    bias: Array = field(metadata={"stored": "float32"})
    """[d_model]"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", checks.int8_rows("a", self.a))
        object.__setattr__(self, "b", checks.leading_rows("b", self.b))
        object.__setattr__(self, "bias", checks.array("bias", self.bias, np.float32, 1))
        checks.shape("a", self.a.shape, (self.rank, len(self.bias)))
        checks.shape("b", self.b.shape, (len(self.bias), self.rank))

    @property
    def rank(self) -> int:
        """Rows of a."""
        return len(self.a)
