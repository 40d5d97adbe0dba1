"""`Corpus`: the documents of text files, found again by their place, and split into training and validation."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import InputError
from dejavu.texts import Span, document_in, spanned_documents

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SECTION_BYTES = 4096
"""Least size of the sections that a plain text is cut into."""
VALIDATION = 0.05
"""Share of the documents that is held out."""
_SEEDS = 2**63


class Corpus:
    """Documents that lie in files; memory holds where each begins, not its text.

    They are read as `dejavu.texts` says, but that plain text is cut at blank lines into sections of at least
    `SECTION_BYTES`, and each counts as a document.

    A document belongs to the validation part if the hash of its text and the seed is among the smallest 5%, so equal
    documents fall on the same side. `training` and `validation` hold document numbers, int64.

    Raises:
        InputError: a file cannot be read, is damaged or of an unknown kind, there are fewer than two documents, or the seed
            does not fit into 64 bits.
    """

    def __init__(self, paths: Sequence[Path], *, seed: int) -> None:
        if not -_SEEDS <= seed < _SEEDS:
            raise InputError(
                f"seed {seed}; -2^63 to 2^63 - 1 is possible", fix="choose a --seed in this range"
            )
        self.paths = tuple(paths)
        self.seed = seed
        places: list[tuple[int, int, int, int]] = []  # file, number in it, offset, bytes
        hashes: list[int] = []
        key = seed.to_bytes(8, "little", signed=True)
        for number, path in enumerate(self.paths):
            for span, _ in spanned_documents(path, section=SECTION_BYTES):
                places.append((number, span.number, span.offset, len(span.data)))
                hashes.append(
                    int.from_bytes(hashlib.blake2b(span.data, digest_size=8, key=key).digest(), "little")
                )
        if len(set(hashes)) < 2:
            raise InputError(
                f"{', '.join(map(str, self.paths))}: {len(set(hashes))} document; one is needed to learn from and "
                "another one to check with",
                fix='pass more text: .jsonl lines with a "text" field, or a longer .txt',
            )
        self._places: NDArray[np.int64] = np.array(places, np.int64)  # [n, 4]
        self.fingerprint = hashlib.blake2b(np.array(hashes, np.uint64).tobytes(), digest_size=16).hexdigest()
        order = np.argsort(np.array(hashes, np.uint64), kind="stable")  # [n]
        held = max(1, round(VALIDATION * len(order)))
        while held < len(order) - 1 and hashes[order[held]] == hashes[order[held - 1]]:
            held += 1
        self.validation: NDArray[np.int64] = order[:held]
        self.training: NDArray[np.int64] = np.sort(order[held:])

    def text(self, document: int) -> str:
        """Read one document."""
        file, number, offset, size = self._places[document].tolist()
        path = self.paths[file]
        try:
            with path.open("rb") as stream:
                stream.seek(offset)
                data = stream.read(size)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        return document_in(path, Span(number, offset, data))
