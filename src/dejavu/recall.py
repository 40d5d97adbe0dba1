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
    """Per layer, how many of the neurons that matter most the plan selects.

    Each token of `tokens` [t] selects by the plan; beside its k neurons stand the k with the largest abs(h) of the same
    pass. Both sets have the same size, so this is the precision too. The sequence runs as a masked prefill.

    Raises:
        InputError: no plan is set.
    """
    trace = executor.trace(tokens, want=("hidden", "chosen"))
    found = []
    for hidden, mask in zip(np.abs(trace.hidden), trace.chosen > 0, strict=True):  # [t, f] each
        counts = mask.sum(axis=1)  # [t]
        order = np.argsort(-hidden, axis=1, kind="stable")  # [t, f]
        hits = np.take_along_axis(mask, order, axis=1) & (np.arange(mask.shape[1]) < counts[:, None])
        found.append(float(hits.sum() / max(counts.sum(), 1)))
    return found
