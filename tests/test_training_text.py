"""From files to pieces of tokens: the split, the order, positions, text that is too short."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu.errors import InputError
from dejavu.models.loading import open_model
from dejavu.texts import read_documents
from dejavu.tokenizer import Tokenizer
from dejavu.training.corpus import SECTION_BYTES, Corpus
from dejavu.training.stream import PIECE, Position, TokenStream
from tiny_chat import build_tiny_chat
from training_texts import documents, write_jsonl

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    opened = open_model(build_tiny_chat(tmp_path_factory.mktemp("tiny")))
    tokenizer = Tokenizer.from_model(opened)
    opened.close()
    return tokenizer


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus([write_jsonl(tmp_path / "text.jsonl", [*documents(60, 20), "x" * 2000])], seed=3)


def test_every_document_is_in_one_part(tmp_path: Path) -> None:
    texts = documents(200, 5)
    corpus = Corpus([write_jsonl(tmp_path / "a.jsonl", texts)], seed=1)
    parts = [{corpus.text(int(i)) for i in part} for part in (corpus.training, corpus.validation)]
    assert parts[0] | parts[1] == set(texts)
    assert not parts[0] & parts[1]
    assert len(corpus.validation) == 10


def test_equal_documents_fall_on_one_side(tmp_path: Path) -> None:
    texts = documents(10, 5) * 30
    corpus = Corpus([write_jsonl(tmp_path / "a.jsonl", texts)], seed=0)
    held = {corpus.text(int(i)) for i in corpus.validation}
    assert len(corpus.validation) == 30 * len(held)
    assert not held & {corpus.text(int(i)) for i in corpus.training}


def test_seeds_split_differently(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", documents(200, 5))
    first, again, other = (Corpus([path], seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.validation, again.validation)
    assert first.fingerprint == again.fingerprint
    assert set(first.validation) != set(other.validation)


def test_plain_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"{i} " + "word " * 300 for i in range(20)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    corpus = Corpus([tmp_path / "book.txt"], seed=0)
    everything = sorted([*corpus.training, *corpus.validation])
    assert "".join(corpus.text(int(i)) for i in everything) == "\n\n".join(paragraphs)
    assert 4 < len(everything) < 8


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"\xef\xbb\xbfone\r\n\r\n" + b"x" * SECTION_BYTES + b"\r\n\r\ntwo\rthree"),
        ("A.JSONL", b'\xef\xbb\xbf{"text": "one\\r\\n"}\r\n{"text": "two"}\r\n'),
    ],
)
def test_text_is_what_it_is_when_measured(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    corpus = Corpus([path], seed=0)
    everything = sorted([*corpus.training, *corpus.validation])
    assert len(everything) == 2
    assert "".join(corpus.text(int(i)) for i in everything) == "".join(read_documents(path))


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_seed_out_of_range(tmp_path: Path, seed: int) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", documents(5, 5))
    Corpus([path], seed=2**63 - 1)
    with pytest.raises(InputError, match=f"seed {seed}") as caught:
        Corpus([path], seed=seed)
    assert "--seed" in str(caught.value.fix)


def test_several_files(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "a.jsonl", ["first\u2028line", "second"])
    (tmp_path / "b.txt").write_text("third", encoding="utf-8")
    corpus = Corpus([one, tmp_path / "b.txt"], seed=0)
    texts = {corpus.text(int(i)) for i in (*corpus.training, *corpus.validation)}
    assert texts == {"first\u2028line", "second", "third"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "one"}\n', "1 document"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "one"}\n', "1 document"),
        ("a.jsonl", b'{"text": "one"}\n{"body": "two"}\n', r"a\.jsonl:2"),
        ("a.jsonl", b'{"text": " "}\n\n', "no text"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "\\udc00"}\n', r"a\.jsonl:2: .*\\udc00"),
        ("a.json", b'{"text": "one"}\n{"text": "two"}\n', "not from .json"),
        ("a.txt", b"abc\xff", "byte 3 is not UTF-8"),
        ("a.txt", None, "No such file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        Corpus([tmp_path / name], seed=0)


def test_pieces_are_parts_of_one_document(corpus: Corpus, tokenizer: Tokenizer) -> None:
    stream = TokenStream(corpus, tokenizer, context=100)
    parts: list[list[str]] = [[]]
    for piece, position in stream.training():
        parts[-1].append(tokenizer.decode(piece.tolist()))
        assert 2 <= len(piece) <= 100
        if not position.piece:
            parts.append([])
        if position.document == len(corpus.training):
            break
    assert sorted(map("".join, parts[:-1])) == sorted(corpus.text(int(i)) for i in corpus.training)
    assert max(map(len, TokenStream(corpus, tokenizer, context=4096).validation(5000))) <= PIECE


class BosTokenizer:
    """Letters as tokens, and texts begin with 7."""

    bos_id = 7

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        return [7] * add_special + [ord(letter) for letter in text]


def test_each_piece_begins_with_bos(corpus: Corpus) -> None:
    stream = TokenStream(corpus, BosTokenizer(), context=50)  # type: ignore[arg-type]
    for piece in stream.validation(300):
        assert piece[0] == 7
        assert 7 not in piece[1:]
        assert len(piece) <= 50


@given(start=st.integers(0, 150))
def test_goes_on_from_any_position(start: int, request: pytest.FixtureRequest) -> None:
    stream = TokenStream(*_shared(request), context=64)
    whole = list(itertools.islice(stream.training(), start + 5))
    position = whole[start - 1][1] if start else Position()
    for (piece, after), (expected, then) in zip(stream.training(position), whole[start:], strict=False):
        np.testing.assert_array_equal(piece, expected)
        assert after == then


def _shared(request: pytest.FixtureRequest) -> tuple[Corpus, Tokenizer]:
    if "made" not in _MADE:
        folder = request.getfixturevalue("tmp_path_factory").mktemp("text")
        corpus = Corpus([write_jsonl(folder / "a.jsonl", [*documents(20, 10), "y" * 300])], seed=5)
        _MADE["made"] = (corpus, request.getfixturevalue("tokenizer"))
    return _MADE["made"]


_MADE: dict[str, tuple[Corpus, Tokenizer]] = {}


def test_turns_differ_in_order_only(corpus: Corpus, tokenizer: Tokenizer) -> None:
    stream = TokenStream(corpus, tokenizer, context=512)
    turns: dict[int, list[bytes]] = {0: [], 1: []}
    at = 0
    for piece, position in stream.training():
        if at == 2:
            break
        turns[at].append(piece.tobytes())
        at += position.document == len(corpus.training)
    assert turns[0] != turns[1]
    assert sorted(turns[0]) == sorted(turns[1])


def test_validation_can_be_divided(corpus: Corpus, tokenizer: Tokenizer) -> None:
    stream = TokenStream(corpus, tokenizer, context=32)
    first, second = stream.validation(100), stream.validation(100, skip=100)
    assert 90 <= sum(map(len, first)) <= 100
    assert not {p.tobytes() for p in first[:-1]} & {p.tobytes() for p in second}
    training = {p.tobytes() for p, _ in itertools.islice(stream.training(), 50)}
    assert not training & {p.tobytes() for p in (*first, *second)}


def test_a_single_document_can_be_divided(tmp_path: Path) -> None:
    texts = ["".join(map(chr, range(100, 500))), "".join(map(chr, range(500, 900)))]
    stream = TokenStream(
        Corpus([write_jsonl(tmp_path / "a.jsonl", texts)], seed=0), BosTokenizer(), context=101
    )  # type: ignore[arg-type]
    whole = [t for piece in stream.validation(10_000) for t in piece[1:].tolist()]
    assert len(whole) == 400
    for skip in (1, 30, 101, 250, 402):
        first, second = stream.validation(skip), stream.validation(10_000, skip=skip)
        assert all(piece[0] == 7 for piece in second)
        rest = [t for piece in second for t in piece[1:].tolist()]
        assert rest == whole[-len(rest) :]
        assert len(rest) == 400 - (skip - -(-skip // 101))  # each piece begins with BOS
        assert [t for piece in first for t in piece[1:].tolist()] == whole[: len(whole) - len(rest)]
    assert stream.validation(10, skip=404) == []


def test_held_out_text_without_tokens(tmp_path: Path) -> None:
    class Mute(BosTokenizer):
        def encode(self, text: str, *, add_special: bool) -> list[int]:
            return []

    corpus = Corpus([write_jsonl(tmp_path / "a.jsonl", documents(5, 5))], seed=0)
    with pytest.raises(InputError, match="held out to check with has two tokens"):
        TokenStream(corpus, Mute(), context=50).validation(100)  # type: ignore[arg-type]


def test_short_text_is_an_error_with_the_figure(corpus: Corpus, tokenizer: Tokenizer) -> None:
    stream = TokenStream(corpus, tokenizer, context=512)
    stream.require(1000)
    with pytest.raises(InputError, match=r"has \d+ tokens .* at least 1000000 are needed"):
        stream.require(1_000_000)
