"""Documents as pieces of tokens, in an order that a seed and a position determine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dejavu.tokenizer import Tokenizer
    from dejavu.training.corpus import Corpus

    Piece = NDArray[np.int32]

PIECE = 512
"""Most tokens of a piece."""


@dataclass(frozen=True)
class Position:
    """Where a `TokenStream` stands: times through the text, document in the order of that time, piece in it."""

    turn: int = 0
    document: int = 0
    piece: int = 0


class TokenStream:
    """Pieces of up to `PIECE` tokens of the documents of a corpus.

    A piece is part of one document, and begins with BOS if the model's texts do.

    Args:
        corpus: the documents.
        tokenizer: of the model.
        context: the model's; pieces are not longer.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, *, context: int) -> None:
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._length = min(PIECE, context)
        special = tokenizer.encode("", add_special=True)
        self._prefix = special[:1] if special[:1] == [tokenizer.bos_id] else []

    def training(self, start: Position | None = None) -> Iterator[tuple[Piece, Position]]:
        """Pieces without end, each with the position after it. Every turn has an order of its own."""
        at = start or Position()
        turn, first, skip = at.turn, at.document, at.piece
        while True:
            whole, found = first == skip == 0, False
            rng = np.random.default_rng([abs(self._corpus.seed), turn])
            order = rng.permutation(self._corpus.training)
            for document in range(first, len(order)):
                pieces = self._pieces(int(order[document]))
                for number in range(skip, len(pieces)):
                    found, last = True, number + 1 == len(pieces)
                    yield (
                        pieces[number],
                        Position(turn, document + 1, 0) if last else Position(turn, document, number + 1),
                    )
                skip = 0
            turn, first = turn + 1, 0
            if whole and not found:
                raise InputError("no document of the text has two tokens", fix="pass more text")

    def batches(self, tokens: int, start: Position | None = None) -> Iterator[tuple[list[Piece], Position]]:
        """Lists of training pieces of at least `tokens` tokens together, each with the position after it."""
        batch: list[Piece] = []
        for piece, position in self.training(start):
            batch.append(piece)
            if sum(map(len, batch)) >= tokens:
                yield batch, position
                batch = []

    def validation(self, tokens: int, *, skip: int = 0) -> list[Piece]:
        """Pieces of the held-out documents, after the first `skip` tokens, up to `tokens` in all.

        Fewer if there are not so many, and none if there are only `skip`.

        Raises:
            InputError: no held-out document has two tokens.
        """
        pieces: list[Piece] = []
        found, left = False, tokens
        for document in self._corpus.validation:
            for piece in self._pieces(int(document)):
                found = True
                skipped, skip = min(skip, len(piece)), max(skip - len(piece), 0)
                piece = self._rest(piece, skipped)[:left]
                if len(piece) >= 2:
                    pieces.append(piece)
                left -= len(piece)
                if left < 2:
                    return pieces
        if not found:
            raise InputError(
                "no document that is held out to check with has two tokens",
                fix="pass more text, or another --seed",
            )
        return pieces

    def require(self, tokens: int) -> None:
        """Check that the text is long enough.

        Raises:
            InputError: one time through the training documents is less than `tokens`; says both figures.
        """
        found = 0
        for piece, position in self.training():
            if position.turn:
                break
            found += len(piece)
            if found >= tokens:
                return
        raise InputError(
            f"the text has {found} tokens to learn from (without the documents held out to check with); "
            f"at least {tokens} are needed",
            fix="pass more text: --text FILE can be given several times",
        )

    def turns(self, position: Position) -> float:
        """Times through the training documents at `position`."""
        return position.turn + position.document / len(self._corpus.training)

    def _rest(self, piece: Piece, skipped: int) -> Piece:
        """What is left of a piece without its first `skipped` tokens; if anything is, it begins as pieces do."""
        if not skipped:
            return piece
        prefix = len(self._prefix)
        rest = piece[max(skipped, prefix) :]
        return np.concatenate([piece[:prefix], rest]) if len(rest) else rest

    def _pieces(self, document: int) -> Sequence[Piece]:
        tokens = self._tokenizer.encode(self._corpus.text(document), add_special=False)
        width = self._length - len(self._prefix)
        pieces = (
            np.array(self._prefix + tokens[at : at + width], np.int32) for at in range(0, len(tokens), width)
        )
        return [piece for piece in pieces if len(piece) >= 2]
