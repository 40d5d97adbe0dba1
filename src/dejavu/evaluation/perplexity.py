"""Perplexity: how surprised a model is, per token, by text that people wrote.

Definition. The documents are tokenised without special tokens; if the tokenizer begins texts with a BOS
token, every window begins with it. The negative log-likelihood (nll, in nats) of token t of a document is
``-log softmax(logits)[t]``, the logits being those after the tokens before it in its window. With BOS every
token is scored; without, the first token of each document is context only. Then

    perplexity = exp(sum of nll over all scored tokens / number of scored tokens)

over the tokens of all documents together (long documents weigh more than short ones).

Windows. A document whose input does not fit into `window` tokens is read in windows that start `stride`
tokens apart. Each token is scored exactly once, in the first window that reaches it; where windows overlap
(`stride` < `window`) the earlier tokens of a window are context. No token is lost at a border: the last input
of a window predicts the token after the window.

Paths. "prefill" feeds blocks of tokens densely, "decode" one token at a time, the way text is generated: by the
executor's plan, if it has one. "masked" feeds blocks in which each token selects for itself by that plan. Decode and
masked must give the same figure up to rounding, and without a plan prefill too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from dejavu.errors import InputError, NumericsError
from dejavu.evaluation.encoding import text_prefix
from dejavu.llm import CHUNK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.executor import Cache, Executor
    from dejavu.tokenizer import Tokenizer

ScoringPath = Literal["prefill", "decode", "masked"]

DEFAULT_WINDOW = 1024

_LOGITS_BYTES = 64 << 20
"""Most bytes of float32 logits asked of one prefill call."""


@dataclass(frozen=True)
class Document:
    """Tokens of one document, without special tokens; `prefix` (BOS or nothing) begins each window."""

    tokens: tuple[int, ...]
    prefix: tuple[int, ...] = ()

    @property
    def scored(self) -> int:
        """Number of tokens that will be scored."""
        return max(0, len(self.tokens) - (0 if self.prefix else 1))


@dataclass(frozen=True)
class DocumentScore:
    """Sum of the nll (nats) over the scored tokens of one document."""

    nll: float
    tokens: int


@dataclass(frozen=True)
class Perplexity:
    """Result of `measure_perplexity`: scores of the documents in their order, and how they were taken."""

    documents: tuple[DocumentScore, ...]
    path: ScoringPath
    window: int
    stride: int

    @property
    def tokens(self) -> int:
        """Number of tokens scored."""
        return sum(document.tokens for document in self.documents)

    @property
    def nll(self) -> float:
        """Mean nll of a token in nats."""
        return math.fsum(document.nll for document in self.documents) / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite if that exceeds a double."""
        return math.exp(self.nll) if self.nll < 709 else math.inf

    def ratio(self, base: Perplexity) -> float:
        """Perplexity over that of `base`, which must have scored the same documents; 1e304 at most.

        Raises:
            InputError: the two did not score the same numbers of tokens.
        """
        if [d.tokens for d in self.documents] != [d.tokens for d in base.documents]:
            raise InputError(
                "the two perplexities were not taken over the same tokens", fix="score the same text twice"
            )
        return math.exp(min(self.nll - base.nll, 700.0))

    def to_dict(self) -> dict[str, object]:
        """Plain JSON-able values."""
        return {
            "perplexity": self.perplexity,
            "nll": self.nll,
            "tokens": self.tokens,
            "path": self.path,
            "window": self.window,
            "stride": self.stride,
            "documents": [{"nll": d.nll, "tokens": d.tokens} for d in self.documents],
        }


def encode_documents(
    tokenizer: Tokenizer, texts: Iterable[str], *, limit: int | None = None
) -> list[Document]:
    """Tokenise texts, stopping when `limit` tokens can be scored (the last document is cut there).

    Documents with nothing to score (empty, or one token and no BOS) are left out.

    Raises:
        InputError: nothing is left to score, or `limit` is not positive.
    """
    if limit is not None and limit <= 0:
        raise InputError(f"limit of {limit} tokens", fix="ask for at least one token")
    prefix = text_prefix(tokenizer)
    documents: list[Document] = []
    left = math.inf if limit is None else limit
    for text in texts:
        document = Document(tuple(tokenizer.encode(text, add_special=False)), prefix)
        if document.scored > left:
            document = Document(document.tokens[: int(left) + (0 if prefix else 1)], prefix)
        if document.scored:
            documents.append(document)
            left -= document.scored
        if left <= 0:
            break
    if not documents:
        raise InputError("the text has no tokens to score", fix="pass a longer text")
    return documents


def measure_perplexity(
    executor: Executor,
    documents: Sequence[Document],
    *,
    path: ScoringPath = "prefill",
    window: int | None = None,
    stride: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """Score `documents` with `executor` (definition: see the module).

    Args:
        executor: the model.
        documents: from `encode_documents`.
        path: which path of the executor the scored tokens go through (see the module).
        window: most tokens fed before the cache is emptied; at most the model's context. None: 1024, or the
            context where that is shorter.
        stride: distance between the starts of windows, 1 to `window` (less one with BOS). None: windows do
            not overlap.
        progress: called with the number of tokens scored since the last call.

    Raises:
        InputError: `window` or `stride` out of range.
        NumericsError: a token's probability is NaN or zero.
    """
    context = executor.config.max_context
    if window is None:
        window = min(DEFAULT_WINDOW, context)
    if not 2 <= window <= context:
        raise InputError(f"window of {window} tokens", fix=f"choose 2 to {context}, the model's context")
    widest = min(window - len(document.prefix) for document in documents)
    if stride is None:
        stride = widest
    elif not 1 <= stride <= widest:
        raise InputError(f"stride of {stride} tokens", fix=f"choose 1 to {widest}")
    feed = _FEEDS[path]
    scores = []
    for number, document in enumerate(documents):
        total = 0.0
        for nll in _document_nlls(executor, document, feed, window, stride):
            if not np.isfinite(nll).all():
                raise NumericsError(
                    f"document {number}: a token has probability NaN or zero",
                    fix="check the weights with `dejavu info MODEL`, and try --codec f32",
                )
            total += float(nll.sum(dtype=np.float64))
            if progress is not None:
                progress(nll.size)
        scores.append(DocumentScore(total, document.scored))
    return Perplexity(tuple(scores), path, window, stride)


Feed = Callable[
    ["Executor", "Cache", "NDArray[np.int32]", "NDArray[np.int32]"], Iterator["NDArray[np.float64]"]
]


def _document_nlls(
    executor: Executor, document: Document, feed: Feed, window: int, stride: int
) -> Iterator[NDArray[np.float64]]:
    """Yield the nll of the document's scored tokens in order, in pieces."""
    for inputs, targets in windows(document, window, stride):
        yield from feed(executor, executor.new_cache(), inputs, targets)


def windows(
    document: Document, window: int, stride: int
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """The windows of a document (see the module): inputs [n], and the targets [m] that the last m of them predict."""
    tokens = np.asarray(document.tokens, np.int32)  # [n]
    prefix = np.asarray(document.prefix, np.int32)  # [0 or 1]
    width = window - prefix.size
    # Inputs of a window: prefix, tokens[start : start + width]. The input at position p of the document
    # predicts p + 1; the prefix predicts the window's first token, which is new only in the first window.
    done = 0 if prefix.size else 1  # tokens[:done] are scored, or have no context
    for start in range(0, len(tokens), stride):
        stop = min(
            start + width, len(tokens) - 1
        )  # inputs end here: the last token predicts nothing that is known
        yield np.concatenate([prefix, tokens[start:stop]]), tokens[done : stop + 1]
        done = stop + 1
        if done == len(tokens):
            return


def _prefill(
    executor: Executor,
    cache: Cache,
    inputs: NDArray[np.int32],
    targets: NDArray[np.int32],
    *,
    sparse: bool = False,
) -> Iterator[NDArray[np.float64]]:
    """Feed blocks; the logits of the last `targets.size` inputs predict `targets`."""
    chunk = logits_chunk(executor.config.vocab_size)
    context = inputs.size - targets.size
    for start in range(0, context, CHUNK):
        executor.prefill(inputs[start : min(start + CHUNK, context)], cache, sparse=sparse)
    for start in range(0, targets.size, chunk):
        block = inputs[context + start : context + start + chunk]
        logits = executor.prefill(block, cache, all_logits=True, sparse=sparse)  # [t, vocab]
        yield token_nll(logits, targets[start : start + chunk])


def _decode(
    executor: Executor, cache: Cache, inputs: NDArray[np.int32], targets: NDArray[np.int32]
) -> Iterator[NDArray[np.float64]]:
    """Feed one token at a time; the logits of the last `targets.size` inputs predict `targets`."""
    context = inputs.size - targets.size
    for position in range(inputs.size):
        logits = executor.decode(inputs[position : position + 1], [cache])  # [1, vocab]
        if position >= context:
            yield token_nll(logits, targets[position - context : position - context + 1])


_FEEDS: dict[ScoringPath, Feed] = {
    "prefill": _prefill,
    "decode": _decode,
    "masked": partial(_prefill, sparse=True),
}


def logits_chunk(vocab_size: int) -> int:
    """Most tokens whose logits are asked of one call, so that they stay within a bound of memory."""
    return max(16, min(CHUNK, _LOGITS_BYTES // (4 * vocab_size)))


def token_nll(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """-log softmax(logits)[target] in nats: logits [t, vocab], targets [t] -> [t].

    Row by row, so that nothing the size of `logits` is allocated; float32 terms, float64 sums. NaN or
    infinite logits give NaN or infinity, without a warning.
    """
    out = np.empty(targets.size, np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for row, target in enumerate(targets):
            values = logits[row] - logits[row].max()  # [vocab], all <= 0
            out[row] = np.log(np.exp(values).sum(dtype=np.float64)) - values[target]
    return out
