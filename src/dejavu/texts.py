"""Reading documents from files: what a model is measured on, and learns from. The one place that says how."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dejavu.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINES = ".jsonl"
"""Ending of files with a document on each line."""
_PLAIN = (".txt", ".md", "")


@dataclass(frozen=True)
class Span:
    """A part of a file that may hold a document."""

    number: int
    """From 1; of a ``.jsonl`` file that of the line."""
    offset: int
    data: bytes


def read_documents(path: Path) -> list[str]:
    """Read documents from a file, UTF-8.

    ``.jsonl``: one JSON object a line, its ``text`` field is a document. ``.txt``, ``.md`` and no ending: the whole file
    is one document. Blank documents are left out.

    Raises:
        InputError: the file is of another kind, cannot be read, is not UTF-8, a line is not such an object, or nothing is
            left.
    """
    return [document for _, document in spanned_documents(path)]


def spanned_documents(path: Path, *, section: int | None = None) -> Iterator[tuple[Span, str]]:
    """The documents of a file that are not blank, each with where it lies. Raises `InputError` as `read_documents` does.

    Args:
        path: the file.
        section: plain text is cut at blank lines into documents of at least so many bytes; None: it is not cut.
    """
    found = False
    for span in _spans(path, section):
        if span.data.strip() and (document := document_in(path, span)).strip():
            found = True
            yield span, document
    if not found:
        raise InputError(f"{path}: no text in it", fix="pass a file that holds text")


def document_in(path: Path, span: Span) -> str:
    """The document in a part of the file `path`. Raises `InputError` where there is none."""
    text = decode(span.data, path, span.offset)
    return parse_line(text, path, span.number) if is_lines(path) else text


def is_lines(path: Path) -> bool:
    """Whether each line of the file is a document, by its name's ending in upper or lower case.

    Raises:
        InputError: it is the ending of neither such files nor plain text.
    """
    ending = path.suffix.lower()
    if ending not in (LINES, *_PLAIN):
        raise InputError(
            f"{path}: texts are read from .jsonl, .txt and .md files and such without an ending, not from {path.suffix}",
            fix='convert it to plain text in a .txt file, or to lines such as {"text": "..."} in a .jsonl file',
        )
    return ending == LINES


def read_text(path: Path) -> str:
    """All of a UTF-8 file, as `decode` gives it. Raises `InputError` if it cannot be read or is not UTF-8."""
    return decode(b"".join(_lines(path)), path)


def decode(data: bytes, path: Path, offset: int = 0) -> str:
    r"""The text of bytes that lie at `offset` of a file.

    Every end of a line becomes ``\n``. A byte order mark at the beginning of the file is no part of its text.

    Raises:
        InputError: they are not UTF-8.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {offset + error.start} is not UTF-8", fix="convert the file to UTF-8"
        ) from error
    text = text if offset else text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a ``.jsonl`` file that are not blank, with their numbers from 1.

    Not splitlines(): it also splits at U+2028 and its like, which JSON allows inside a string.
    """
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def parse_object(line: str, path: Path, number: int) -> dict[str, Any]:
    """The JSON object in line `number` of the file `path`. Raises `InputError` where there is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}:{number}: not JSON ({error})", fix="put one JSON object on each line"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path}:{number}: not a JSON object", fix="put one JSON object on each line")
    return value


def parse_line(line: str, path: Path, number: int) -> str:
    """The document in line `number` of the ``.jsonl`` file `path`. Raises `InputError` where there is none."""
    document = parse_object(line, path, number).get("text")
    if not isinstance(document, str):
        raise InputError(
            f'{path}:{number}: no "text" string in this line', fix='use lines such as {"text": "..."}'
        )
    if half := lone_surrogate(document):
        raise InputError(f"{path}:{number}: {half}", fix="correct or remove this line")
    return document


def lone_surrogate(text: str) -> str | None:
    r"""What is wrong with a text that has no UTF-8 form, as JSON can spell it: ``"\ud800"``. None: nothing."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair, \\u{ord(text[error.start]):04x}, is no character"
    return None


def _spans(path: Path, section: int | None) -> Iterator[Span]:
    by_line = is_lines(path)
    number, offset, size = 1, 0, 0
    held: list[bytes] = []
    for line in _lines(path):
        held.append(line)
        size += len(line)
        if by_line or (section is not None and size >= section and not line.strip()):
            yield Span(number, offset, b"".join(held))
            number, offset, size, held = number + 1, offset + size, 0, []
    if held:
        yield Span(number, offset, b"".join(held))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            yield from stream
    except OSError as error:
        also = "; standard input is not read" if str(path) == "-" else ""
        raise InputError(
            f"{path}: {error.strerror or error}{also}", fix="pass the path of a .txt or .jsonl file"
        ) from error
