"""Perplexity against its definition, computed directly; windows, borders, paths and bad input."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu.errors import InputError, NumericsError
from dejavu.evaluation.perplexity import (
    Document,
    DocumentScore,
    Perplexity,
    ScoringPath,
    encode_documents,
    measure_perplexity,
    token_nll,
)
from dejavu.models.loading import open_model
from dejavu.reference import ReferenceExecutor
from dejavu.texts import read_documents
from dejavu.tokenizer import Tokenizer
from tiny_chat import build_tiny_chat

VOCAB = 50
TABLE = np.random.default_rng(7).normal(size=(VOCAB, VOCAB)).astype(np.float32)


def logits_after(history: list[int]) -> np.ndarray:
    """A causal model that looks at every token before: older tokens weigh less. float32 [vocab]."""
    out = np.zeros(VOCAB, np.float32)
    for token in history:
        out = np.float32(0.7) * out + TABLE[token]
    return out


@dataclass
class ListCache:
    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.tokens)


class ListExecutor:
    """`Executor` over `logits_after`; counts its calls."""

    config = SimpleNamespace(max_context=64, vocab_size=VOCAB)

    def __init__(self) -> None:
        self.decoded = self.prefilled = self.masked = self.longest = 0

    def new_cache(self) -> ListCache:
        return ListCache()

    def prefill(
        self, tokens: np.ndarray, cache: ListCache, *, all_logits: bool = False, sparse: bool = False
    ) -> np.ndarray:
        assert tokens.size
        rows = []
        for token in tokens:
            cache.tokens.append(int(token))
            rows.append(logits_after(cache.tokens))
        self.prefilled += tokens.size
        self.masked += tokens.size * sparse
        self.longest = max(self.longest, cache.length)
        return np.stack(rows if all_logits else rows[-1:])

    def decode(self, tokens: np.ndarray, caches: list[ListCache]) -> np.ndarray:
        self.decoded += tokens.size
        logits = [
            self.prefill(np.array([token]), cache)[0] for token, cache in zip(tokens, caches, strict=True)
        ]
        self.longest = max(self.longest, *(cache.length for cache in caches))
        return np.stack(logits)


def direct_nll(history: list[int], target: int) -> float:
    logits = logits_after(history).astype(np.float64)
    return float(np.log(np.exp(logits).sum()) - logits[target])


def direct_document(document: Document, window: int, stride: int) -> float:
    """The definition, token by token: the first window that holds a token scores it."""
    prefix, tokens = list(document.prefix), list(document.tokens)
    width = window - len(prefix)
    total = 0.0
    for position in range(0 if prefix else 1, len(tokens)):
        # the inputs of window w are tokens[w * stride : w * stride + width]; it predicts one further
        w = 0
        while w * stride + width < position:
            w += 1
        total += direct_nll(prefix + tokens[w * stride : position], tokens[position])
    return total


@pytest.mark.parametrize("path", get_args(ScoringPath))
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    bos=st.booleans(),
    window=st.integers(3, 16),
    stride=st.integers(1, 16),
    seed=st.integers(0, 1000),
)
def test_equals_the_definition(
    path: Any, lengths: list[int], bos: bool, window: int, stride: int, seed: int
) -> None:
    stride = min(stride, window - bos)
    rng = np.random.default_rng(seed)
    documents = [
        Document(tuple(rng.integers(1, VOCAB, n).tolist()), (0,) if bos else ())
        for n in (max(n, 1 if bos else 2) for n in lengths)
    ]
    executor = ListExecutor()
    seen: list[int] = []
    result = measure_perplexity(
        executor,  # type: ignore[arg-type]
        documents,
        path=path,
        window=window,
        stride=stride,
        progress=seen.append,
    )
    wanted = [direct_document(document, window, stride) for document in documents]
    np.testing.assert_allclose([d.nll for d in result.documents], wanted, rtol=1e-5)
    assert [d.tokens for d in result.documents] == [d.scored for d in documents]
    assert sum(seen) == result.tokens == sum(d.scored for d in documents)
    np.testing.assert_allclose(result.perplexity, math.exp(sum(wanted) / result.tokens), rtol=1e-5)
    assert executor.longest <= window
    assert (executor.decoded > 0) == (path == "decode")
    assert executor.masked == (executor.prefilled if path == "masked" else 0)


def test_default_windows_do_not_overlap() -> None:
    document = Document(tuple(range(1, 40)), (0,))
    executor = ListExecutor()
    result = measure_perplexity(executor, [document], window=10)  # type: ignore[arg-type]
    assert result.stride == 9
    assert executor.prefilled == 39 - 1 + 5  # each token but the last is fed once, and BOS once per window
    np.testing.assert_allclose(result.documents[0].nll, direct_document(document, 10, 9), rtol=1e-5)


def test_ratio_and_dict() -> None:
    base = Perplexity((DocumentScore(20.0, 10), DocumentScore(10.0, 5)), "prefill", 8, 8)
    worse = Perplexity((DocumentScore(21.0, 10), DocumentScore(10.5, 5)), "decode", 8, 8)
    assert worse.ratio(base) == pytest.approx(math.exp(0.1))
    assert json.loads(json.dumps(worse.to_dict()))["tokens"] == 15
    other = Perplexity((DocumentScore(31.0, 15),), "decode", 8, 8)
    with pytest.raises(InputError, match="same tokens"):
        other.ratio(base)


def test_hopeless_model_is_infinite() -> None:
    assert Perplexity((DocumentScore(1e6, 1),), "prefill", 8, 8).perplexity == math.inf


def test_token_nll_matches_float64() -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(5, 3001)) * 20 + 300).astype(np.float32)
    targets = rng.integers(0, 3001, 5).astype(np.int32)
    exact = logits.astype(np.float64)
    wanted = np.log(np.exp(exact - 300).sum(axis=1)) + 300 - exact[np.arange(5), targets]
    np.testing.assert_allclose(token_nll(logits, targets), wanted, rtol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_logits_are_an_error(value: float) -> None:
    class Broken(ListExecutor):
        def prefill(
            self, tokens: np.ndarray, cache: ListCache, *, all_logits: bool = False, sparse: bool = False
        ) -> np.ndarray:
            logits = super().prefill(tokens, cache, all_logits=all_logits)
            logits[:, 3] = value
            return logits

    documents = [Document((1,), (0,)), Document((1, 3), (0,))]
    if value == -math.inf:  # only the token that cannot come is a fault
        measure_perplexity(Broken(), documents[:1])  # type: ignore[arg-type]
    with pytest.raises(NumericsError, match="document 1" if value == -math.inf else "document 0"):
        measure_perplexity(Broken(), documents)  # type: ignore[arg-type]


@pytest.mark.parametrize(("window", "stride"), [(1, None), (65, None), (8, 0), (8, 9), (8, -1)])
def test_bad_windows(window: int, stride: int | None) -> None:
    executor: Any = ListExecutor()
    with pytest.raises(InputError, match=r"window of|stride of"):
        measure_perplexity(executor, [Document((1, 2, 3))], window=window, stride=stride)


class CharTokenizer:
    """One token per character; `bos` is id 0 or absent."""

    def __init__(self, bos: bool) -> None:
        self.bos_id = 0 if bos else None

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        return ([0] if add_special and self.bos_id is not None else []) + [1 + ord(c) % 40 for c in text]


@pytest.mark.parametrize("bos", [True, False])
def test_encode_documents_cuts_at_the_limit(bos: bool) -> None:
    tokenizer: Any = CharTokenizer(bos)
    documents = encode_documents(tokenizer, ["abcd", "", "efgh", "ijkl"], limit=6)
    assert [d.scored for d in documents] == ([4, 2] if bos else [3, 3])
    assert all(d.prefix == ((0,) if bos else ()) for d in documents)
    assert [d.scored for d in encode_documents(tokenizer, ["a", "bc"])] == ([1, 2] if bos else [1])
    with pytest.raises(InputError, match="no tokens"):
        encode_documents(tokenizer, ["", ""])
    with pytest.raises(InputError, match="limit"):
        encode_documents(tokenizer, ["abc"], limit=0)


def test_read_documents(tmp_path: Any) -> None:
    text = tmp_path / "a.txt"
    text.write_text("one\n\ntwo\n", encoding="utf-8")
    assert read_documents(text) == ["one\n\ntwo\n"]
    lines = tmp_path / "a.jsonl"
    separator = chr(0x2028)  # a line border for str.splitlines, but not for JSON
    rows = [{"text": f"é{separator}x"}, {"text": "  "}, {"text": "y", "more": 1}]
    lines.write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8"
    )
    assert read_documents(lines) == [f"é{separator}x", "y"]


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.md", "a"])
def test_marks_and_line_ends_are_no_part_of_plain_text(tmp_path: Any, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\xef\xbb\xbf")
    assert read_documents(path) == ["one\ntwo\nthree\n\ufeff"]  # at another place it is what the author wrote


@pytest.mark.parametrize("name", ["a.jsonl", "JS.JSONL"])
def test_marks_and_line_ends_of_lines(tmp_path: Any, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n\r\n{"text": "c"}')
    assert read_documents(path) == ["a\r\nb", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "No such file"),
        ("-", None, "standard input is not read"),
        ("a.json", b'{"text": "a"}', "not from .json"),
        ("A.CSV", b"a", "not from .CSV"),
        ("a.jsonl.gz", b"a", "not from .gz"),
        ("a.txt", b"\xef\xbb\xbfabc\xff", "byte 6 is not UTF-8"),
        ("a.txt", b"\xef\xbb\xbf", "no text"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "abc \\ud800"}', r"a\.jsonl:3: .*\\ud800"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt", b" \n", "no text"),
        ("a.jsonl", b'{"text": "a"}\n{', ":2: not JSON"),
        ("a.jsonl", b"[1]", "not a JSON object"),
        ("a.jsonl", b'{"text": 1}', 'no "text"'),
        ("a.jsonl", b"[" * 100_000, "not JSON"),
    ],
)
def test_bad_files(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_documents(path)
    assert caught.value.fix


@pytest.mark.parametrize("stride", [None, 7])
def test_reference_executor_equals_a_direct_computation(tmp_path: Any, stride: int | None) -> None:
    model = open_model(build_tiny_chat(tmp_path, context=64))
    executor = ReferenceExecutor(model.config, model.weights)
    tokenizer = Tokenizer.from_folder(tmp_path)
    documents = encode_documents(tokenizer, ["A first text.", "A second text, longer than a window of 16."])
    assert [d.scored for d in documents] == [12, 41]
    window = 16
    wanted = []
    for document in documents:
        tokens, total, done = list(document.tokens), 0.0, 1
        for start in range(0, len(tokens), stride or window):
            inputs = np.array(tokens[start : start + window], np.int32)
            logits = executor.prefill(inputs, executor.new_cache(), all_logits=True).astype(np.float64)
            logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            for row, position in enumerate(range(start + 1, start + 1 + len(inputs))):
                if done <= position < len(tokens):
                    total -= logs[row, tokens[position]]
                    done = position + 1
        wanted.append(total)
    for path in get_args(ScoringPath):
        result = measure_perplexity(executor, documents, path=path, window=window, stride=stride)
        np.testing.assert_allclose([d.nll for d in result.documents], wanted, rtol=1e-5)
    model.close()
