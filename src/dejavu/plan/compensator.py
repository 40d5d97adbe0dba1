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
    """Adds ``bias + b.T @ (a @ y0)`` to the MLP's output, y0 being the block's own normed input.

    `a` and `b` are rounded to int8 (groups of 32 along a row), as they are stored. Rank 0 adds the mean alone.
    """

    kind: ClassVar = "low_rank"
    a: Array = field(metadata={"stored": "int8"})
    """[r, d_model]"""
    b: Array = field(metadata={"stored": "int8"})
    """[r, d_model]: rows that are added to the output."""
    bias: Array = field(metadata={"stored": "float32"})
    """[d_model]"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", checks.int8_rows("a", self.a))
        object.__setattr__(self, "b", checks.int8_rows("b", self.b))
        object.__setattr__(self, "bias", checks.array("bias", self.bias, np.float32, 1))
        checks.shape("a", self.a.shape, (self.rank, len(self.bias)))
        checks.shape("b", self.b.shape, (self.rank, len(self.bias)))

    @property
    def rank(self) -> int:
        """Rows of a and b."""
        return len(self.a)
