"""Folders that are filled whole or not at all, and take the place of others by renames."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dejavu.errors import InputError
from dejavu.models.store import disk_errors, drop_empty_parents, sync_folder
from dejavu.models.temporaries import hidden_name, remove, temporary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def refuse(path: Path) -> bool:
    """Raise `InputError`, for a folder that nothing may replace."""
    raise InputError(f"{path} exists", fix="give another place")


@contextlib.contextmanager
def staged_folder(path: Path, *, replace: Callable[[Path], bool] = refuse) -> Iterator[Path]:
    """Fill a folder whole or not at all: yields a temporary folder beside it, renamed at the end.

    Args:
        path: the folder to be.
        replace: asked at the end about a folder that is there and not empty: whether to replace it, or to drop what was
            written; or it raises. The old folder is deleted when the new one is in its place.

    Raises:
        InputError: `path` is there by then, and `replace` was not given.
        CacheError: the folder cannot be written, the disk is full, ...
    """
    try:
        with contextlib.ExitStack() as stack:
            with disk_errors(path, everything=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                staging = stack.enter_context(temporary(path, Path.mkdir))
            with disk_errors(path):
                yield staging
            with disk_errors(path, everything=True):
                for file in filter(Path.is_file, staging.rglob("*")):
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
                _rename(staging, path, replace)
                sync_folder(path.parent)
    finally:
        drop_empty_parents(path)


def _rename(staging: Path, path: Path, replace: Callable[[Path], bool]) -> None:
    try:
        staging.rename(path)  # in the place of an empty folder, too
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if replace(path):
            _exchange(staging, path)


def _exchange(staging: Path, path: Path) -> None:
    """Put `staging` in the place of the folder `path`, which is deleted after that; killed between, it stays as .old."""
    old = hidden_name(path, "old")
    path.rename(old)
    try:
        staging.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            old.rename(path)
        raise
    remove(old.rename(hidden_name(path)))
