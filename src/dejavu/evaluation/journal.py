"""What is finished, a JSON line each, so that an interrupted evaluation can go on.

``{"run": ..., "of": ..., "item": ..., ...}``: `run` names the model, plan, codec and path, `of` the task or text by name
and content, `item` the line or window; the rest is the result. Lines of several runs, and of several shards, may be in
one file: ``cat shard-*.items.jsonl > all.items.jsonl``.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from dejavu.errors import CacheError, InputError
from dejavu.texts import numbered_lines, parse_object, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

_KEY = ("run", "of", "item")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the disk's errors while `path` is written into `CacheError`."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"cannot write {path}: {error.strerror or error}",
            fix="make room, or give a file in a folder that you may write; then run again with --resume",
        ) from error


class Journal:
    """Finished items, in memory and in a file. Close it, or use it in a ``with``.

    Args:
        path: the file; None: in memory only.
        resume: read what is there; otherwise begin anew.

    Raises:
        InputError: a line is not what `add` writes; the last one may be cut off, and is dropped then.
        CacheError: the file cannot be written.
    """

    def __init__(self, path: Path | None, *, resume: bool = False) -> None:
        self._path = path
        self._found: dict[tuple[Any, ...], dict[str, Any]] = {}
        text = read_text(path) if path is not None and resume and path.exists() else ""
        text = text[: text.rfind("\n") + 1]
        if path is not None:
            for number, line in numbered_lines(text):
                value = parse_object(line, path, number)
                if not all(name in value for name in _KEY):
                    raise InputError(f"{path}:{number}: not a finished item", fix="remove this line")
                self._found[tuple(value[name] for name in _KEY)] = value
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                self._stream = path.open("a", encoding="utf-8")

    def get(self, run: str, of: str, item: int) -> dict[str, Any] | None:
        """The result of an item, or None."""
        return self._found.get((run, of, item))

    def add(self, run: str, of: str, results: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Note results of items, and have them on the disk before this returns."""
        for item, result in results:
            value = {"run": run, "of": of, "item": item, **result}
            self._found[run, of, item] = value
            if self._path is not None:
                with writing(self._path):
                    self._stream.write(json.dumps(value, ensure_ascii=False) + "\n")
        if self._path is not None:
            with writing(self._path):
                self._stream.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            self._stream.close()
