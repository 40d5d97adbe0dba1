"""Streams of tokens cut anywhere must give the text of all their bytes, up to the first stop string."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dejavu.detokenizer import Detokenizer

SPECIAL = 10_000


class Pieces:
    """A tokenizer whose token i is the i-th piece of some bytes; SPECIAL is a control token."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, token_id: int, *, skip_special: bool = False) -> bytes:
        if token_id == SPECIAL:
            return b"" if skip_special else b"<|end|>"
        return self.pieces[token_id]


def cut(data: bytes, borders: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(b % (len(data) + 1) for b in borders)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def stream(pieces: list[bytes], **options: object) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(Pieces(pieces), **options)  # type: ignore[arg-type]
    out = [detokenizer.push(i) for i in range(len(pieces))]
    return [*out, detokenizer.finish()], detokenizer


borders_strategy = st.lists(st.integers(0, 200), max_size=40)
texts = st.text(st.sampled_from("ab\n é中😀\u0301\u200d"), max_size=30)


@given(texts, borders_strategy)
@example("😀😀", [1, 2, 3, 5])
def test_any_cut_gives_the_text_and_no_piece_holds_a_broken_character(text: str, borders: list[int]) -> None:
    pieces, _ = stream(cut(text.encode(), borders))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


@given(st.binary(max_size=40), borders_strategy)
def test_bytes_that_are_not_utf8_give_what_decoding_them_at_once_gives(
    data: bytes, borders: list[int]
) -> None:
    pieces, _ = stream(cut(data, borders))
    assert "".join(pieces) == data.decode("utf-8", "replace")


@given(texts, borders_strategy)
def test_characters_come_as_soon_as_they_are_whole(text: str, borders: list[int]) -> None:
    pieces = cut(text.encode(), borders)
    out, _ = stream(pieces)
    seen = b""
    for i, piece in enumerate(pieces):
        seen += piece
        assert "".join(out[: i + 1]) == seen.decode("utf-8", "ignore")


def first_stop(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The definition: go through the text character by character until one of the stops ends there."""
    for end in range(1, len(text) + 1):
        matches = [s for s in stops if text[:end].endswith(s)]
        if matches:
            longest = max(matches, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@given(
    st.text("abc\n", max_size=30),
    st.lists(st.text("abc\n", min_size=1, max_size=4), max_size=3),
    st.booleans(),
    borders_strategy,
)
@example("aab", ["ab"], False, [1, 2])
@example("abab\n", ["aba\n", "bab\n"], False, [1, 2, 3, 4])
def test_stop_strings_at_any_cut(text: str, stops: list[str], include: bool, borders: list[int]) -> None:
    out, detokenizer = stream(cut(text.encode(), borders), stop=stops, include_stop=include)
    assert ("".join(out), detokenizer.stopped) == first_stop(text, stops, include)


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=3))
def test_only_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    detokenizer = Detokenizer(Pieces([c.encode() for c in text]), stop=stops)
    shown = ""
    for i in range(len(text)):
        shown += detokenizer.push(i)
        if detokenizer.stopped is not None:
            break
        held = text[len(shown) : i + 1]
        assert shown + held == text[: i + 1]
        assert held == "" or any(s.startswith(held) and s != held for s in stops)


def test_stop_string_with_half_characters() -> None:
    out, detokenizer = stream(cut("x😀é!".encode(), list(range(20))), stop=["é"])
    assert ("".join(out), detokenizer.stopped) == ("x😀", "é")


def test_nothing_comes_after_a_stop() -> None:
    detokenizer = Detokenizer(Pieces([b"a!b", b"c"]), stop=["!"])
    assert detokenizer.push(0) == "a"
    assert detokenizer.push(1) == ""
    assert detokenizer.finish() == ""


def test_text_before_min_tokens_does_not_stop() -> None:
    detokenizer = Detokenizer(Pieces([b"a!", b"b", b"c!d"]), stop=["!"])
    assert detokenizer.push(0, may_stop=False) == "a!"
    assert detokenizer.push(1) == "b"
    assert detokenizer.push(2) == "c"
    assert detokenizer.stopped == "!"


@given(
    st.text("abc\n", max_size=20),
    st.lists(st.text("abc\n", min_size=1, max_size=4), max_size=3),
    st.integers(0, 20),
    st.booleans(),
)
@example("xab", ["ab"], 2, False)  # begins where it may not end
@example("abx", ["ab", "abxy"], 2, False)  # held for the longer one, and passed by
@example("aab", ["aa", "ab"], 2, True)
def test_stop_strings_that_end_after_min_tokens(
    text: str, stops: list[str], least: int, include: bool
) -> None:
    detokenizer = Detokenizer(Pieces([c.encode() for c in text]), stop=stops, include_stop=include)
    shown = "".join(detokenizer.push(i, may_stop=i >= least) for i in range(len(text))) + detokenizer.finish()
    expected = text, None
    for end in range(least + 1, len(text) + 1):
        if matches := [s for s in stops if text[:end].endswith(s)]:
            longest = max(matches, key=len)
            expected = text[: end if include else end - len(longest)], longest
            break
    assert (shown, detokenizer.stopped) == expected


@pytest.mark.parametrize(("skip", "text"), [(True, "ab"), (False, "a<|end|>b")])
def test_special_tokens(skip: bool, text: str) -> None:
    detokenizer = Detokenizer(Pieces([b"a", b"b"]), skip_special=skip)
    assert detokenizer.push(0) + detokenizer.push(SPECIAL) + detokenizer.push(1) == text


def test_an_incomplete_character_at_the_end_is_marked() -> None:
    out, _ = stream(["é".encode()[:1]])
    assert out == ["", "\ufffd"]
