"""Log-likelihoods of continuations, many at a time.

A context is computed once for all of its continuations (their caches are forks of its cache), and several sequences go
through the model together, so that the weights are read once for all of them. `score` is that fast path: dense, or with
each token selecting for itself by the executor's plan. `score_by_decoding` feeds one token of one sequence at a time, as
in generation; both must agree up to rounding.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import NumericsError
from dejavu.evaluation.perplexity import logits_chunk, token_nll
from dejavu.llm import CHUNK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dejavu.evaluation.encoding import Prompt
    from dejavu.executor import Executor

GROUP = 16
"""Items that are scored together, and lost together by an interruption. Always the same ones, for the same rounding."""

SEQUENCES = 32
"""Most sequences of one call: each has a cache, which holds whole blocks of positions."""


@dataclass(frozen=True)
class Score:
    """Of one continuation."""

    logprob: float
    """Natural logarithm of its probability after the context."""
    greedy: bool
    """Whether each token is the likeliest after those before it."""

    def then(self, other: Score) -> Score:
        """Of this piece and the next one together."""
        return Score(self.logprob + other.logprob, self.greedy and other.greedy)


def pack(lengths: Sequence[int], *, tokens: int = CHUNK, count: int = SEQUENCES) -> Iterator[range]:
    """Divide pieces of these `lengths` into runs of at most `tokens` and `count`; a piece is never divided."""
    start = held = 0
    for i, length in enumerate(lengths):
        if i > start and (held + length > tokens or i - start == count):
            yield range(start, i)
            start, held = i, 0
        held += length
    if lengths:
        yield range(start, len(lengths))


def score(executor: Executor, prompts: Sequence[Prompt], *, sparse: bool = False) -> list[list[Score]]:
    """Scores of all targets of all `prompts`, whose caches are held together: divide long lists with `pack`.

    Args:
        executor: the model.
        prompts: within its context.
        sparse: each token selects for itself by the executor's plan.

    Raises:
        NumericsError: a probability is NaN or zero.
    """
    caches = [executor.new_cache() for _ in prompts]
    tails = []
    for prompt, cache in zip(prompts, caches, strict=True):
        tokens = np.asarray(prompt.context, np.int32)
        head = (len(tokens) - 1) // CHUNK * CHUNK
        for start in range(0, head, CHUNK):
            executor.prefill(tokens[start : start + CHUNK], cache, sparse=sparse)
        tails.append(tokens[head:])
    first = executor.prefill_batch(tails, caches, sparse=sparse)  # [prompts, vocab]
    scores = [
        [_score_rows(row[None], target[:1]) for target in prompt.targets]
        for row, prompt in zip(first, prompts, strict=True)
    ]
    branches = [
        (i, j)
        for i, prompt in enumerate(prompts)
        for j, target in enumerate(prompt.targets)
        if len(target) > 1
    ]
    most = logits_chunk(executor.config.vocab_size)
    for run in pack([len(prompts[i].targets[j]) - 1 for i, j in branches], tokens=most):
        together = [branches[n] for n in run]
        forks = [caches[i].fork() for i, _ in together]
        targets = [np.asarray(prompts[i].targets[j], np.int32) for i, j in together]
        for start in range(0, max(map(len, targets)) - 1, most):  # more than once: one target, a long one
            inputs = [target[:-1][start : start + most] for target in targets]
            logits = executor.prefill_batch(inputs, forks, all_logits=True, sparse=sparse)  # [tokens, vocab]
            row = 0
            for (i, j), target, piece in zip(together, targets, inputs, strict=True):
                expected = target[1:][start : start + most]
                scores[i][j] = scores[i][j].then(_score_rows(logits[row : row + len(piece)], expected))
                row += len(piece)
    return scores


def score_by_decoding(executor: Executor, prompt: Prompt) -> list[Score]:
    """Scores of the targets of `prompt`, one token at a time, by the executor's plan if it has one."""
    cache = executor.new_cache()
    for token in prompt.context:
        first = executor.decode(np.array([token], np.int32), [cache])  # [1, vocab]
    scores = []
    for target in prompt.targets:
        fork, total = cache.fork(), _score_rows(first, target[:1])
        for token, expected in itertools.pairwise(target):
            logits = executor.decode(np.array([token], np.int32), [fork])
            total = total.then(_score_rows(logits, (expected,)))
        scores.append(total)
    return scores


def _score_rows(logits: NDArray[np.float32], targets: Sequence[int] | NDArray[np.int32]) -> Score:
    """Logits [t, vocab] that predict `targets` [t]."""
    targets = np.asarray(targets, np.int32)
    nll = token_nll(logits, targets)
    if not np.isfinite(nll).all():
        raise NumericsError(
            "a token has probability NaN or zero",
            fix="check the weights with `dejavu info MODEL`, and try --codec f32",
        )
    return Score(-float(nll.sum()), bool((logits.argmax(axis=1) == targets).all()))
