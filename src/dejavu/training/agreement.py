"""Recall and precision of selected sets against the labels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Agreement:
    """Shares over all that was counted: of the active ones that were selected, of the selected that are active."""

    recall: float
    precision: float


class Tally:
    """Counts selected and active neurons (or heads)."""

    def __init__(self) -> None:
        self._hits = self._selected = self._active = 0

    def add(self, selected: Mask, active: Mask) -> None:
        """Count two sets [t, n]."""
        self._hits += int(np.count_nonzero(selected & active))
        self._selected += int(np.count_nonzero(selected))
        self._active += int(np.count_nonzero(active))

    @property
    def agreement(self) -> Agreement:
        """Over all that was counted."""
        return Agreement(self._hits / max(self._active, 1), self._hits / max(self._selected, 1))

    def merge(self, other: Tally) -> None:
        """Count what `other` counted."""
        self._hits += other._hits
        self._selected += other._selected
        self._active += other._active

    def to_dict(self) -> dict[str, float]:
        """As JSON."""
        return dataclasses.asdict(self.agreement)
