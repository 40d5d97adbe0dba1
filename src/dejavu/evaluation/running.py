"""What a plan did while it ran: densities, bytes, time in predictors; and, sampled, whether it chose the right neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.executor import Executor

CHECKED_TOKENS = 256
"""Of a sequence, the last ones, that `recall` looks at."""


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


def plan_evidence(executor: Any, *, context: int, checked: NDArray[np.int32] | None = None) -> dict[str, Any]:
    """JSON-able: what `executor` counted since its plan was set, and what a token reads.

    Args:
        executor: the native executor, with a plan; its counters are read before anything else runs.
        context: tokens in the cache, for the bytes.
        checked: a sequence [t] whose last tokens are run once more for `recall`; None: not.
    """
    stats = executor.last_stats
    touched = executor.touched_bytes(context)
    evidence: dict[str, Any] = {
        "density": float(np.mean(stats["neurons"])),
        "heads_density": float(np.mean(stats["heads"])),
        "touched_bytes": touched,
        "dense_bytes": executor.dense_bytes(context),
        "predictor_share": stats["predictor_share"],
        "recomputed": stats["recomputed"],
        "ms": stats["ms"],
        "layers": {"neurons": stats["neurons"], "heads": stats["heads"]},
    }
    if checked is not None:
        layers = recall(executor, checked[-CHECKED_TOKENS:])
        evidence["recall"] = float(np.mean(layers))
        evidence["layers"]["recall"] = layers
        evidence["checked_tokens"] = min(len(checked), CHECKED_TOKENS)
    return evidence


def describe(evidence: dict[str, Any]) -> str:
    """The same in one line."""
    touched, dense = (sum(evidence[name].values()) for name in ("touched_bytes", "dense_bytes"))
    parts = [
        f"{evidence['density']:.0%} of the neurons",
        f"{touched / 1e6:.0f} of {dense / 1e6:.0f} MB read per token",
        f"{evidence['predictor_share']:.0%} of the time choosing",
    ]
    if evidence["heads_density"] < 1:
        parts.insert(1, f"{evidence['heads_density']:.0%} of the heads")
    if "recall" in evidence:
        parts.append(f"recall {evidence['recall']:.3f} over {evidence['checked_tokens']} tokens")
    return " · ".join(parts)
