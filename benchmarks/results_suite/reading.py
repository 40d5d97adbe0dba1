"""Finished results, and tables as Markdown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from results_suite.running import Results


class Reader:
    """Finished results; keeps in mind which were read, for the line below a table, and which are yet to come.

    Args:
        results: where they lie.
        expected: names of the parts that a whole run has.
    """

    def __init__(self, results: Results, expected: Collection[str] = ()) -> None:
        self._results = results
        self._expected = expected
        self.notes: list[dict[str, Any]] = []
        self.missing: list[str] = []
        """Parts that were asked for, belong to a whole run, and are not finished."""

    def mention(self, part: str) -> dict[str, Any] | None:
        """Take the commands of a part along, where it is finished. Returns its note."""
        note = self._results.note(part)
        if note is not None and note not in self.notes:
            self.notes.append(note)
        elif note is None and part in self._expected:
            self.missing.append(part)
        return note

    def json(self, part: str) -> Any:
        """The JSON of a part; None where it is not finished."""
        return self._read(part, ".json", json.loads)

    def rows(self, part: str) -> list[dict[str, Any]] | None:
        """The rows of a part whose file has one JSON object a line."""
        return self._read(part, ".jsonl", lambda text: [json.loads(line) for line in text.splitlines()])

    def _read(self, part: str, ending: str, parse: Callable[[str], Any]) -> Any:
        path = self._results.folder / f"{part}{ending}"
        return parse(path.read_text(encoding="utf-8")) if self.mention(part) and path.exists() else None


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; of nothing, nothing."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(header)} |", "|" + "---|" * len(header), *lines])
