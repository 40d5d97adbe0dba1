"""Temporary files and folders beside what they become, and the removal of those whose writer was killed.

A writer holds a lock (flock) on its temporary; the system ends the lock with the process, however that ends. What is named
as a temporary and not locked is left over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_NAME = re.compile(r"\..*\.dejavu-[0-9a-f]{8}\.tmp", re.DOTALL)


def hidden_name(path: Path, ending: str = "tmp") -> Path:
    """A new path beside `path`; one that ends with "tmp" is removed sooner or later, unless it is locked."""
    return path.with_name(f".{path.name[:64]}.dejavu-{secrets.token_hex(4)}.{ending}")


@contextlib.contextmanager
def temporary(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a file or folder beside `path`, made by `make`; at the end it is removed, if it is still there.

    Those that killed writers left in the same folder are removed first.

    Raises:
        OSError: `make` fails.
    """
    _remove_left(path.parent)
    while True:
        made = hidden_name(path)
        make(made)
        lock = _lock(made, wait=True)
        if made.exists():
            break
        _unlock(lock)  # another process took it for left over before the lock was there
    try:
        yield made
    finally:
        remove(made)
        _unlock(lock)


def remove(path: Path) -> None:
    """Delete a file, or a folder with what is in it, as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _remove_left(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]:
            lock = _lock(path, wait=False)
            if lock is not None:
                remove(path)
                _unlock(lock)


def _lock(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of `path`; None: another one does, or the file system has no locks."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe may bear any name
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _unlock(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
