"""`Corpus`: the documents of text files, found again by their place, and split into training and validation."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import InputError
from dejavu.texts import parse_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SECTION_BYTES = 4096
"""Least size of the sections that a plain text is cut into."""
VALIDATION = 0.05
"""Share of the documents that is held out."""


class Corpus:
    """Documents that lie in files; memory holds where each begins, not its text.

    ``.jsonl``: a line is a document, as in `dejavu.texts`. Any other name: the file is cut at blank lines into
    sections of at least `SECTION_BYTES`, and each counts as a document.

    A document belongs to the validation part if the hash of its text and the seed is among the smallest 5%, so equal
    documents fall on the same side. `training` and `validation` hold document numbers, int64.

    Raises:
        InputError: a file cannot be read or is damaged, or there are fewer than two documents.
    """

    def __init__(self, paths: Sequence[Path], *, seed: int) -> None:
        self.paths = tuple(paths)
        self.seed = seed
        places: list[tuple[int, int, int]] = []  # file, offset, bytes
        hashes: list[int] = []
        key = seed.to_bytes(8, "little", signed=True)
        for number, path in enumerate(self.paths):
            for offset, data in _documents(path):
                places.append((number, offset, len(data)))
                hashes.append(
                    int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key).digest(), "little")
                )
        if len(set(hashes)) < 2:
            raise InputError(
                f"{', '.join(map(str, self.paths))}: {len(set(hashes))} document; one is needed to learn from and "
                "another one to check with",
                fix='pass more text: .jsonl lines with a "text" field, or a longer .txt',
            )
        self._places: NDArray[np.int64] = np.array(places, np.int64)  # [n, 3]
        self.fingerprint = hashlib.blake2b(np.array(hashes, np.uint64).tobytes(), digest_size=16).hexdigest()
        order = np.argsort(np.array(hashes, np.uint64), kind="stable")  # [n]
        held = max(1, round(VALIDATION * len(order)))
        while held < len(order) - 1 and hashes[order[held]] == hashes[order[held - 1]]:
            held += 1
        self.validation: NDArray[np.int64] = order[:held]
        self.training: NDArray[np.int64] = np.sort(order[held:])

    def text(self, document: int) -> str:
        """Read one document."""
        file, offset, size = self._places[document]
        path = self.paths[file]
        try:
            with path.open("rb") as stream:
                stream.seek(offset)
                data = stream.read(size)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        return _text(path, data)


def _documents(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each document of a file, checked."""
    offset = found = 0
    spans = _lines(path) if path.suffix == ".jsonl" else _sections(path)
    for number, data in enumerate(spans, start=1):
        if data.strip():
            try:
                text = parse_line(data.decode(), path, number) if path.suffix == ".jsonl" else data.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: byte {offset + error.start} is not UTF-8", fix="convert the file to UTF-8"
                ) from error
            if text.strip():
                found += 1
                yield offset, data
        offset += len(data)
    if not found:
        raise InputError(f"{path}: no text in it", fix="pass a file that holds text")


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            yield from stream
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}", fix="pass the path of a .txt or .jsonl file"
        ) from error


def _sections(path: Path) -> Iterator[bytes]:
    section: list[bytes] = []
    size = 0
    for line in _lines(path):
        section.append(line)
        size += len(line)
        if size >= SECTION_BYTES and not line.strip():
            yield b"".join(section)
            section, size = [], 0
    if section:
        yield b"".join(section)


def _text(path: Path, data: bytes) -> str:
    if path.suffix != ".jsonl":
        return data.decode()
    return str(json.loads(data)["text"])
