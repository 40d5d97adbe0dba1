"""How far two sides are apart: over a text, and in greedy continuations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dejavu.executor import Executor

    Array = NDArray[np.float32]


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """Rows of log-probabilities."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


class Divergence:
    """Of one side's logits from the other's, token by token."""

    def __init__(self) -> None:
        self._kl: list[float] = []
        self._same_top: list[bool] = []
        self._gap: list[float] = []
        self._nll: tuple[list[float], list[float]] = [], []

    def __len__(self) -> int:
        """Tokens so far."""
        return len(self._kl)

    def add(self, tokens: Sequence[int], ours: Array, theirs: Array) -> None:
        """Logits after each of `tokens` [t], both [t, V]."""
        p, q = log_softmax(ours), log_softmax(theirs)
        self._kl += (np.exp(p) * (p - q)).sum(axis=1).tolist()
        self._same_top += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
        rows = np.arange(len(tokens))[:, None]
        two = np.argpartition(p, -2, axis=1)[:, -2:]  # our best two
        self._gap += np.abs(np.diff(p[rows, two]) - np.diff(q[rows, two]))[:, 0].tolist()
        for nll, x in zip(self._nll, (p, q), strict=True):
            nll += (-x[np.arange(len(tokens) - 1), tokens[1:]]).tolist()

    def summary(self) -> dict[str, Any]:
        """What came out; ``gap_change``: how much the distance of our best two tokens is another one there."""
        return {
            "tokens": len(self),
            "mean_kl": float(np.mean(self._kl)),
            "median_kl": float(np.median(self._kl)),
            "same_top_1": float(np.mean(self._same_top)),
            "gap_change_median": float(np.median(self._gap)),
            "gap_change_95": float(np.quantile(self._gap, 0.95)),
            "our_perplexity": float(np.exp(np.mean(self._nll[0]))),
            "peer_perplexity": float(np.exp(np.mean(self._nll[1]))),
        }


def first_difference(
    executor: Executor, prompt: Sequence[int], theirs: Sequence[int]
) -> dict[str, Any] | None:
    """Where our greedy continuation of a prompt, on the decode path, leaves `theirs`; None: nowhere.

    ``token`` counts from 0; ``gap`` is how much our logit of our token exceeds that of theirs.
    """
    cache = executor.new_cache()
    logits = executor.prefill(np.array(prompt, np.int32), cache)
    for i, token in enumerate(theirs):
        best = int(logits[0].argmax())
        if best != token:
            return {"token": i, "gap": float(logits[0, best] - logits[0, token])}
        logits = executor.decode(np.array([token], np.int32), [cache])
    return None


def greedy_summary(differences: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Of `first_difference` of each prompt."""
    equal = sum(found is None for found in differences)
    return {"greedy_texts_equal": f"{equal} of {len(differences)}", "first_differences": list(differences)}
