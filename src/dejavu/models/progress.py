"""What a fetch tells its caller while it runs."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the steps of a fetch, one after another. The command line draws them."""

    def start(self, description: str, total_bytes: int | None) -> None:
        """A step begins; `total_bytes` is None where its size is unknown."""

    def advance(self, n: int) -> None:
        """`n` more bytes are done."""

    def finish(self) -> None:
        """The step ended, well or not."""


class NoProgress:
    """A `Progress` that says nothing."""

    def start(self, description: str, total_bytes: int | None) -> None:
        """Say nothing."""

    def advance(self, n: int) -> None:
        """Say nothing."""

    def finish(self) -> None:
        """Say nothing."""
