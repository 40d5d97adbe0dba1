"""The process's standard streams as the command needs them, and what becomes of output that nobody takes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO


def prepare_streams() -> None:
    """Open what the process was started without, as empty; have stdout and stderr take all text, as UTF-8."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # each gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - it stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def flush(stream: TextIO) -> OSError | None:
    """Have `stream` pass on all that it holds. What is not taken is let go, that Python may end quietly; returns why."""
    try:
        stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # it is no file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        return error
    return None


def output_error(failure: Exception | None) -> OSError | None:
    """Why stdout did not take all that was printed; None: it did.

    Args:
        failure: what ended the command, if anything did.
    """
    refused = flush(sys.stdout)
    if refused is None and isinstance(failure, OSError) and failure.filename is None:
        from dejavu.models.store import is_disk_error

        # Unbuffered, nothing is left to flush; errors of files have their names.
        return failure if is_disk_error(failure) or isinstance(failure, BrokenPipeError) else None
    return refused


def argument_text(argument: str) -> str:
    """An argument that is text, not a path, from UTF-8 whatever the locale; as it is where it is something else."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        return argument
