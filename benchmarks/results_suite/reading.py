"""Finished results, and tables as Markdown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from results_suite.running import Results


class Reader:
    """Finished results; keeps in mind which were read, for the line below a table."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self.notes: list[dict[str, Any]] = []

    def mention(self, part: str) -> None:
        """Take the commands of a part along, where it is finished."""
        if note := self._results.note(part):
            self.notes.append(note)

    def json(self, part: str) -> Any:
        """The JSON of a part; None where it is not finished."""
        return self._read(part, ".json", json.loads)

    def rows(self, part: str) -> list[dict[str, Any]] | None:
        """The rows of a part whose file has one JSON object a line."""
        return self._read(part, ".jsonl", lambda text: [json.loads(line) for line in text.splitlines()])

    def _read(self, part: str, ending: str, parse: Callable[[str], Any]) -> Any:
        note = self._results.note(part)
        path = self._results.folder / f"{part}{ending}"
        if note is None or not path.exists():
            return None
        self.notes.append(note)
        return parse(path.read_text(encoding="utf-8"))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; of nothing, nothing."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(header)} |", "|" + "---|" * len(header), *lines])
