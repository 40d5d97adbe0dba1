"""Putting tables between the marks of Markdown documents; all that stands around them is left alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from results_suite.reading import Reader
from results_suite.tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from results_suite.running import Results

_MARKED = re.compile(r"(<!-- begin ([a-z -]+) -->\n)(.*?)(<!-- end \2 -->)", re.DOTALL)


def fill(
    documents: Mapping[str, str], results: Results, expected: Collection[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """The documents with every table whose parts are finished, and the names of the other tables.

    Args:
        documents: texts by name.
        results: of the parts.
        expected: names of the parts that a whole run has; a table that lacks one of them stays as it is.

    Raises:
        SystemExit: the documents have no place for a table, or one of a name that no table has.
    """
    places = [name for text in documents.values() for _, name, _, _ in _MARKED.findall(text)]
    if unknown := sorted(set(places) ^ set(TABLES)):
        raise SystemExit(f"the marks of the documents and the tables differ in: {', '.join(unknown)}")
    kept = []

    def place(match: re.Match[str]) -> str:
        begin, name, old, end = match.groups()
        read = Reader(results, expected)
        table = TABLES[name](read)
        if not table or read.missing:
            kept.append(name)
            return begin + old + end
        return f"{begin}{table}\n\n{origin(read.notes)}\n{end}"

    return {name: _MARKED.sub(place, text) for name, text in documents.items()}, kept


def origin(notes: Sequence[dict[str, Any]]) -> str:
    """Commands, dates, code and machines of the results of a table."""
    lines = [f"`{command}`" for note in notes for command in note["commands"]]
    facts = dict.fromkeys(
        f"{note['date']}, {note['cpu']}, {note['cores']} cores, code {note['code']}" for note in notes
    )
    return "  \n".join([*lines, f"({'; '.join(facts)})"])
