"""The text of an analysis: short pieces, each a sequence of its own, in two halves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import InputError
from dejavu.evaluation.perplexity import Document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dejavu.models.config import ModelConfig

PIECE = 512
"""Most tokens of a piece."""
SHORTEST = 16
"""Shorter left-overs are dropped: their few tokens have next to no context."""
FEWEST = 128
"""Fewest tokens that each half needs."""
_TRACE_BYTES = 512 << 20
"""Most bytes of one trace; pieces of larger models are shorter."""


@dataclass(frozen=True)
class Pieces:
    """The calibration half says which neurons and heads matter on the whole; the evaluation half is judged on."""

    calibration: tuple[Document, ...]
    evaluation: tuple[Document, ...]

    @property
    def tokens(self) -> int:
        """Of both halves."""
        return sum(len(piece.tokens) for piece in (*self.calibration, *self.evaluation))


def split_pieces(documents: Sequence[Document], config: ModelConfig) -> Pieces:
    """Cut documents into pieces, eight at least; the first half of the tokens is for calibration.

    Raises:
        InputError: the text is too short.
    """
    available = sum(len(document.tokens) for document in documents)
    width = min(piece_length(config), max(SHORTEST, available // 8))
    pieces = [
        Document(document.tokens[start : start + width], document.prefix)
        for document in documents
        for start in range(0, len(document.tokens), width)
        if len(document.tokens) - start >= min(SHORTEST, width)
    ]
    total = sum(len(piece.tokens) for piece in pieces)
    half, seen = 0, 0
    while half < len(pieces) and 2 * seen < total:
        seen += len(pieces[half].tokens)
        half += 1
    split = Pieces(tuple(pieces[:half]), tuple(pieces[half:]))
    fewest = min(sum(len(piece.tokens) for piece in side) for side in (split.calibration, split.evaluation))
    if fewest < FEWEST:
        raise InputError(
            f"the text is too short: of its {available} tokens {fewest} are left for the smaller half, and at least "
            f"{FEWEST} are needed in each half",
            fix="pass a longer text, or a larger --tokens",
        )
    return split


def piece_length(config: ModelConfig) -> int:
    """Tokens of a piece without BOS: up to `PIECE`, fewer where the context or the memory for a trace is short."""
    values = config.n_layers * (2 * config.d_model + 2 * config.d_ff + config.n_heads)
    return max(1, min(PIECE, config.max_context, max(64, _TRACE_BYTES // (4 * values))) - 1)


def inputs(piece: Document) -> NDArray[np.int32]:
    """What is fed: BOS, if the model begins texts with one, and the tokens."""
    return np.array([*piece.prefix, *piece.tokens], np.int32)
