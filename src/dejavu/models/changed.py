"""`ChangedWeights`: what deltas and adapters share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

    from dejavu.models.weights import Weights


class Arrays(Protocol):
    """Where the changes are read from."""

    def release(self) -> None:
        """See `Weights.release`."""

    def close(self) -> None:
        """See `Weights.close`."""


class ChangedWeights:
    """`Weights` of a base of which some matrices are changed; a subclass reads those.

    Args:
        base: the original; `close` closes it.
        changes: what changes it; closed too.
    """

    def __init__(self, base: Weights, changes: Arrays) -> None:
        self._base = base
        self._changes = changes

    def changes(self, name: str) -> bool:
        """Whether a tensor of the base is not as it was."""
        raise NotImplementedError

    def names(self) -> Collection[str]:
        """The base's."""
        return self._base.names()

    def __contains__(self, name: object) -> bool:
        return name in self._base

    def shape(self, name: str) -> tuple[int, ...]:
        """The base's."""
        return self._base.shape(name)

    def source_type(self, name: str) -> str:
        """Changed matrices are floats, whatever the base's were."""
        return "F16" if self.changes(name) else self._base.source_type(name)

    def release(self) -> None:
        """Let the OS drop the pages read so far."""
        self._base.release()
        self._changes.release()

    def close(self) -> None:
        """Close both."""
        self._base.close()
        self._changes.close()
