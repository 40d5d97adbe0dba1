"""What a long run tells of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Progress(Protocol):
    """Told of the stages of a training."""

    def start(self, stage: str, total: int) -> None:
        """A stage of `total` tokens begins."""

    def advance(self, tokens: int, state: str = "") -> None:
        """`tokens` more are done; `state` is a line about how it goes."""


class Silent:
    """A `Progress` that shows nothing."""

    def start(self, stage: str, total: int) -> None:
        """Nothing."""

    def advance(self, tokens: int, state: str = "") -> None:
        """Nothing."""


def spread(values: Sequence[float]) -> str:
    """The mean of what layers have, and the least and the most."""
    return f"{sum(values) / len(values):.3f} ({min(values):.2f}-{max(values):.2f})"
