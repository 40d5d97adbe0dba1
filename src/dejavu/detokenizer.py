"""From tokens to text, piece by piece: never half a character, never the start of a stop string."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class TokenBytes(Protocol):
    """The part of a tokenizer that is needed here."""

    def token_bytes(self, token_id: int, *, skip_special: bool = False) -> bytes:
        """Bytes that the token stands for."""


class Detokenizer:
    """Text of one completion, as its tokens arrive.

    Joined, the pieces are the UTF-8 decoding of the tokens' bytes (other bytes become U+FFFD), up
    to the first stop string. Pieces do not depend on where the borders between tokens fall, except in length.
    First means the one that ends first; of those that end together, the longest.

    Args:
        tokenizer: gives the bytes of tokens.
        stop: strings that end the text.
        include_stop: whether the stop string itself belongs to the text.
        skip_special: whether control tokens stand for nothing (else for their name).
    """

    def __init__(
        self,
        tokenizer: TokenBytes,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # holds back incomplete characters
        self._held = ""
        self.stopped: str | None = None
        """The stop string that was met."""

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Text that can be shown now that this token is known; nothing after a stop string.

        Args:
            token_id: the next token.
            may_stop: whether a stop string may end in this token's text; where it begins does not matter. False while
                there are too few tokens (`min_tokens`).
        """
        if self.stopped is not None:
            return ""
        passed = len(self._held)
        self._held += self._decoder.decode(
            self._tokenizer.token_bytes(token_id, skip_special=self._skip_special)
        )
        return self._release(self._stop if may_stop else (), passed)

    def finish(self) -> str:
        """What was held back, at the end of the stream. An incomplete character becomes U+FFFD."""
        if self.stopped is not None:
            return ""
        text, self._held = self._held + self._decoder.decode(b"", final=True), ""
        return text

    def _release(self, stop: tuple[str, ...], passed: int) -> str:
        """What can be shown of the text held: to one of `stop` that ends behind the first `passed` characters, if any."""
        found = [
            (place + len(s), place, s)
            for s in stop
            if (place := self._held.find(s, max(passed + 1 - len(s), 0))) >= 0
        ]
        if found:
            end, start, self.stopped = min(found)
            text, self._held = self._held[: end if self._include_stop else start], ""
            return text
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
