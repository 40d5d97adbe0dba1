"""Reading documents from files: what a model is measured on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dejavu.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def read_documents(path: Path) -> list[str]:
    """Read documents from a file, UTF-8.

    ``.jsonl``: one JSON object a line, its ``text`` field is a document. Any other name: the whole file is
    one document. Blank documents are left out.

    Raises:
        InputError: the file cannot be read, is not UTF-8, a line is not such an object, or nothing is left.
    """
    text = read_text(path)
    documents = (
        [parse_line(line, path, number) for number, line in numbered_lines(text)]
        if path.suffix == ".jsonl"
        else [text]
    )
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise InputError(f"{path}: no text in it", fix="pass a file that holds text")
    return documents


def read_text(path: Path) -> str:
    """All of a UTF-8 file. Raises `InputError` if it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}", fix="pass the path of a .txt or .jsonl file"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not UTF-8", fix="convert the file to UTF-8"
        ) from error


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
    return document
