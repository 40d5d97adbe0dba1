"""`recall`: whether a plan selects the neurons that matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.executor import Executor

CHECKED_TOKENS = 256
"""Of a sequence, that `recall` is to look at."""


def recall(executor: Executor, tokens: NDArray[np.int32]) -> list[float]:
    """Per layer, the share that the plan selects of the neurons that matter most.

    Each token of `tokens` [t] selects by the plan; beside its k neurons stand the k with the largest abs(h) of the same
    pass, or those that are not zero where there are fewer. The sequence runs as a masked prefill.

    Raises:
        InputError: no plan is set.
    """
    trace = executor.trace(tokens, want=("hidden", "chosen"))
    found = []
    for hidden, mask in zip(np.abs(trace.hidden), trace.chosen > 0, strict=True):  # [t, f] each
        counts = mask.sum(axis=1)  # [t]
        order = np.argsort(-hidden, axis=1, kind="stable")  # [t, f]
        largest = np.arange(mask.shape[1]) < counts[:, None]
        matter = largest & (np.take_along_axis(hidden, order, axis=1) > 0)
        hits = matter & np.take_along_axis(mask, order, axis=1)
        found.append(float(hits.sum() / matter.sum()) if matter.any() else 1.0)
    return found
