"""What is finished, a JSON line each, so that an interrupted evaluation can go on.

``{"run": ..., "of": ..., "item": ..., ...}``: `run` names the model, plan, codec and path, `of` the task or text by name
and content, `item` the line or window; the rest is the result. Lines of several runs, and of several shards, may be in
one file: ``cat shard-*.items.jsonl > all.items.jsonl``.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, TextIO

from dejavu.errors import CacheError, InputError
from dejavu.models.store import atomic_write
from dejavu.texts import numbered_lines, parse_object, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

_KEY = ("run", "of", "item")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the disk's errors while `path` is written into `CacheError` with a fix that fits an evaluation."""
    try:
        yield
    except (OSError, CacheError) as error:
        told = (
            f"cannot write {path}: {error.strerror or error}" if isinstance(error, OSError) else error.args[0]
        )
        raise CacheError(
            told, fix="make room, or give a file in a folder that you may write; then run again with --resume"
        ) from error


class Journal:
    """Finished items, in memory and in a file. Close it, or use it in a ``with``.

    What lies in the file stays as it is until the first item is added.

    Args:
        path: the file; None: in memory only.
        resume: go on from what is there; otherwise the first item replaces it.

    Raises:
        InputError: a line is not what `add` writes; the last one may be cut off, and is dropped then.
    """

    def __init__(self, path: Path | None, *, resume: bool = False) -> None:
        self._path = path
        self._stream: TextIO | None = None
        self._found: dict[tuple[Any, ...], dict[str, Any]] = {}
        if path is not None and resume and path.exists():
            text = read_text(path)
            for number, line in numbered_lines(text[: text.rfind("\n") + 1]):
                value = parse_object(line, path, number)
                if not all(name in value for name in _KEY):
                    raise InputError(f"{path}:{number}: not a finished item", fix="remove this line")
                self._found[tuple(value[name] for name in _KEY)] = value

    def begin(self) -> None:
        """Make the file if there is none: a run that is interrupted before its first item shows as such.

        Raises:
            CacheError: it cannot be written.
        """
        if self._path is not None:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.touch()

    def get(self, run: str, of: str, item: int) -> dict[str, Any] | None:
        """The result of an item, or None."""
        return self._found.get((run, of, item))

    def add(self, run: str, of: str, results: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Note results of items, and have them on the disk before this returns.

        Raises:
            CacheError: the file cannot be written.
        """
        values = [{"run": run, "of": of, "item": item, **result} for item, result in results]
        if self._path is not None:
            with writing(self._path):
                self._stream = self._stream or self._open(self._path)
                self._stream.writelines(map(_line, values))
                self._stream.flush()
                os.fsync(self._stream.fileno())
        self._found |= {tuple(value[name] for name in _KEY): value for value in values}

    def _open(self, path: Path) -> TextIO:
        """The file with what it goes on from, and nothing else."""
        with atomic_write(path) as stream:
            stream.writelines(_line(value).encode() for value in self._found.values())
        return path.open("a", encoding="utf-8")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
