"""ALiBi: attention scores get ``slope[head] * (key position - query position)`` added."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def alibi_slopes(n_heads: int) -> NDArray[np.float32]:
    """Slopes per head, float32 [n_heads] (Press et al., 2022, and its extension beyond powers of two).

    For ``n`` heads, a power of two, they are the geometric series ``2^(-8/n), 2^(-16/n), ...``. Any further
    heads take every other slope of the series for ``2n`` heads.
    """
    n = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / n) for i in range(n_heads - n)]
    return np.array(slopes, np.float32)
