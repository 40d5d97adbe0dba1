"""What a plan did while it ran: densities, bytes, time in predictors; and, sampled, whether it chose the right neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.recall import CHECKED_TOKENS, recall

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
