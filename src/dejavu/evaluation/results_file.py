"""`ResultsFile`: where results go. What lies there stays until there are new results to take its place."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dejavu.errors import InputError
from dejavu.evaluation.journal import writing
from dejavu.models.store import atomic_write
from dejavu.texts import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KIND = "eval"
"""``kind`` of the results."""
_ENDING = ".json"  # nothing else: a.json and a.txt would share the file of items


@dataclass(frozen=True)
class ResultsFile:
    """A ``.json`` file and, beside it, the finished items that its results are made of.

    The results hold the SHA-256 of these items. Other items are those of a run that was interrupted.
    """

    path: Path

    @property
    def items(self) -> Path:
        """The file of finished items."""
        return self.path.with_suffix(".items.jsonl")

    def check(self, inputs: Iterable[Path], *, resume: bool) -> None:
        """Whether results may go there: before the work begins. Leaves nothing there.

        Args:
            inputs: files that are read.
            resume: finished items are to be kept.

        Raises:
            InputError: the name does not end in ``.json``, a folder or a file of something else is there, one of the two
                files is an input, or finished items of an interrupted run would be thrown away unasked.
            CacheError: nothing can be written there.
        """
        if self.path.suffix != _ENDING:
            raise InputError(
                f"-o {self.path}: results go into a {_ENDING} file", fix="give a file such as -o results.json"
            )
        self._check_writable()
        if self.path.is_dir():
            raise InputError(f"-o {self.path} is a folder", fix="give a file such as -o results.json")
        places = {place.resolve(): place for place in (self.path, self.items)}
        for read in inputs:
            if place := places.get(read.resolve()):
                raise InputError(f"-o {self.path}: this run reads {place}", fix="give another file with -o")
        made_of = self._results().get("items_sha256")
        if self.items.exists() and not resume and made_of != self._items_digest():
            raise InputError(
                f"{self.items} holds finished items of an interrupted run",
                fix=f"go on with --resume, or delete {self.items}",
            )

    def save(self, results: dict[str, Any]) -> None:
        """Replace the file, whole or not at all. Raises `CacheError` if it cannot be written."""
        with writing(self.path):
            document = results | {"items_sha256": self._items_digest()}
            with atomic_write(self.path) as stream:
                stream.write(json.dumps(document, indent=1).encode())

    def _check_writable(self) -> None:
        with writing(self.path):
            existing = next(folder for folder in self.path.absolute().parents if folder.exists())
            with tempfile.TemporaryFile(dir=existing):
                pass

    def _results(self) -> dict[str, Any]:
        """Those that lie there; {} where nothing does. Raises `InputError` for a file of something else."""
        text = read_text(self.path) if self.path.exists() else ""
        if not text.strip():
            return {}
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("kind") != KIND:
            raise InputError(
                f"-o {self.path}: there is a file that is no result of dejavu eval",
                fix="give another file with -o, or delete this one",
            )
        return found

    def _items_digest(self) -> str:
        return hashlib.sha256(self.items.read_bytes()).hexdigest()
