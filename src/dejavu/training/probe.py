"""`Probe`: how far a plan moves the model's predictions, on the code path that generation uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import NumericsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dejavu.executor import Executor
    from dejavu.plan import AccessPlan
    from dejavu.training.stream import Piece

KEPT = 256
"""Most likely tokens whose probabilities are compared one by one; the others count as one."""


@dataclass(frozen=True)
class Measured:
    """What a plan does to the predictions of the probe's tokens."""

    ratio: float
    """Perplexity over that of the dense model."""
    divergence: float
    """Mean KL divergence from the dense model's prediction, nats per token. For small changes it tells plans apart
    with far fewer tokens than the ratio does."""
    neurons: tuple[float, ...]
    """Mean density of each layer."""
    heads: tuple[float, ...]
    """Mean density of each layer."""


class Probe:
    """Pieces of text with the dense model's predictions for them.

    Args:
        executor: the model; its plan is changed.
        pieces: tokens; of each piece all but the last predict the next.
    """

    def __init__(self, executor: Executor, pieces: Sequence[Piece]) -> None:
        self._executor = executor
        self.pieces = list(pieces)
        self.tokens = sum(len(piece) - 1 for piece in self.pieces)
        executor.set_plan(None)
        self._dense = [_Prediction(self._log_probs(piece, sparse=False), piece[1:]) for piece in self.pieces]

    def measure(self, plan: AccessPlan, progress: Callable[[int], None] = lambda _: None) -> Measured:
        """Run the plan over all pieces. The executor is left dense."""
        loss = divergence = 0.0
        self._executor.set_plan(plan)
        try:
            for piece, dense in zip(self.pieces, self._dense, strict=True):
                log_probs = self._log_probs(piece, sparse=True)
                loss += dense.loss_added(log_probs, piece[1:])
                divergence += dense.divergence(log_probs)
                progress(len(piece))
            stats = self._executor.last_stats
        finally:
            self._executor.set_plan(None)
        if not math.isfinite(loss + divergence):
            raise NumericsError(f"the plan {plan.name!r} leads to NaN or infinite logits")
        return Measured(
            math.exp(min(loss / self.tokens, 700)),
            divergence / self.tokens,
            tuple(stats["neurons"]),
            tuple(stats["heads"]),
        )

    def _log_probs(self, piece: Piece, *, sparse: bool) -> NDArray[np.float32]:
        """Log softmax after each token but the last, [t - 1, V]."""
        cache = self._executor.new_cache()
        logits = self._executor.prefill(piece[:-1], cache, all_logits=True, sparse=sparse)  # [t - 1, V]
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logits


class _Prediction:
    """What the dense model says of one piece: its most likely tokens, and the loss."""

    def __init__(self, log_probs: NDArray[np.float32], targets: Piece) -> None:
        kept = min(KEPT, log_probs.shape[1] - 1)
        self._tokens = np.argpartition(-log_probs, kept, axis=1)[:, :kept]  # [t, kept]
        self._log_probs = np.take_along_axis(log_probs, self._tokens, axis=1)  # [t, kept]
        self._targets = np.take_along_axis(log_probs, targets[:, None].astype(np.int64), axis=1)  # [t, 1]

    def loss_added(self, log_probs: NDArray[np.float32], targets: Piece) -> float:
        """Sum over tokens of the nll minus the dense one."""
        found = np.take_along_axis(log_probs, targets[:, None].astype(np.int64), axis=1)
        return float((self._targets - found).sum(dtype=np.float64))

    def divergence(self, log_probs: NDArray[np.float32]) -> float:
        """Sum over tokens of KL(dense || other)."""
        other = np.take_along_axis(log_probs, self._tokens, axis=1)  # [t, kept]
        p, q = np.exp(self._log_probs), np.exp(other)
        rest_p, rest_q = (np.maximum(1 - x.sum(axis=1, dtype=np.float64), 1e-9) for x in (p, q))  # [t]
        return float(
            (p * (self._log_probs - other)).sum(dtype=np.float64) + (rest_p * np.log(rest_p / rest_q)).sum()
        )
