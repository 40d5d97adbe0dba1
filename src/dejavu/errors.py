"""Typed errors: each says what was found and, in `fix`, what the user can do about it."""

from __future__ import annotations


class DejavuError(Exception):
    """Base of all errors that dejavu raises on purpose.

    Args:
        message: what was found, and what is supported.
        fix: the command or change that mends it; printed on its own line.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.fix = fix

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\nfix: {self.fix}" if self.fix else message


class ModelFormatError(DejavuError):
    """A model file is truncated, inconsistent, hostile or of an unknown format."""

    exit_code = 3


class UnsupportedModelError(DejavuError):
    """The file is sound, but its architecture or an option in it is not supported."""

    exit_code = 4


class SourceError(DejavuError):
    """A model could not be found or fetched (unknown name, unreachable hub or index, offline)."""

    exit_code = 5


class IntegrityError(DejavuError):
    """Downloaded bytes do not have the hash that was promised."""

    exit_code = 6


class CacheError(DejavuError):
    """The cache folder cannot be read or written (read-only, full disk, permissions)."""

    exit_code = 7


class InputError(DejavuError, ValueError):
    """A prompt, text or option is out of range (empty, too long, unknown name)."""

    exit_code = 8


class NumericsError(DejavuError):
    """Weights or logits hold NaN or infinity."""

    exit_code = 9


class PlanError(DejavuError):
    """An access plan is damaged, of an unknown kind, or for another model."""

    exit_code = 10


class PeerError(DejavuError):
    """Another engine, run for comparison, failed: it ended, took too long, or cannot run the model."""

    exit_code = 11


class PeerMissingError(PeerError):
    """Another engine is not installed."""


class OutputError(DejavuError):
    """The command's standard output takes no more (full disk)."""

    exit_code = 12
