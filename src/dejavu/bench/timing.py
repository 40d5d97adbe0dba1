"""Timing one run of a test on an executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from dejavu.bench.cases import Test
from dejavu.bench.results import Run
from dejavu.errors import NumericsError
from dejavu.executor import Executor
from dejavu.llm import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from dejavu.engine.packed import Packed

_WARM_STEPS = 4
_WARM_PROMPT = 32


class TimedExecutor(Executor, Protocol):
    """What is timed: an executor that also knows the bytes it holds and touches."""

    @property
    def packed(self) -> Packed:
        """The weights in memory."""

    @property
    def plan_nbytes(self) -> int:
        """Bytes of memory that the plan takes beside them; dense: 0."""

    def touched_bytes(self, context: int) -> Mapping[str, int]:
        """Bytes read to decode one token after `context` others: by part, the cache under "kv"."""

    def reset_stats(self) -> None:
        """Begin to count anew for `last_stats`."""


def time_test(
    executor: TimedExecutor,
    test: Test,
    text: NDArray[np.int32],
    clock: Callable[[], float],
    *,
    planned: bool = False,
) -> Run:
    """Run a test once.

    Args:
        executor: the model.
        test: what to run.
        text: tokens to feed. Each sequence reads another part of it. The text's own tokens are fed, not the model's:
            every setting then does the same work.
        clock: seconds.
        planned: it decodes by a plan: what the sequences of a batch touch together is then not known.

    Raises:
        NumericsError: the logits are not finite; such a run proves nothing.
    """
    rows = tokens_of(test, text)
    caches = [executor.new_cache() for _ in rows]
    marks = [clock()]
    for row, cache in zip(rows, caches, strict=True):
        for block in blocks(row[: test.tokens if test.kind == "pp" else test.depth]):
            logits = executor.prefill(block, cache)
    marks.append(clock())
    if test.kind == "pp":
        _check(test, logits)
        return Run(marks[1] - marks[0], marks[1] - marks[0])
    columns = np.ascontiguousarray(rows[:, test.depth :].T)  # [steps, batch]
    executor.reset_stats()
    steps = [clock()]
    for column in columns:
        logits = executor.decode(column, caches)
        steps.append(clock())
    _check(test, logits)
    times = tuple(np.diff(steps).tolist())
    return Run(
        seconds=steps[-1] - steps[0],
        first=marks[1] - marks[0] if test.depth else times[0],
        steps=times,
        touched=None if planned and test.batch > 1 else _touched(executor, test),
        stats=dict(executor.last_stats),
    )


def warm_test(test: Test) -> Test:
    """A short form of `test` that touches the same weights."""
    most = _WARM_PROMPT if test.kind == "pp" else _WARM_STEPS
    return Test(test.kind, min(test.tokens, most), test.batch)


def tokens_of(test: Test, text: NDArray[np.int32]) -> NDArray[np.int32]:
    """What each sequence of a test reads: [batch, depth + tokens]."""
    count = test.depth + test.tokens
    return np.stack([sequence(text, i * text.size // test.batch, count) for i in range(test.batch)])


def sequence(text: NDArray[np.int32], start: int, count: int) -> NDArray[np.int32]:
    """`count` tokens of `text` from `start` on, which begins again at its end."""
    return text[np.arange(start, start + count) % text.size]


def blocks(tokens: NDArray[np.int32]) -> Iterable[NDArray[np.int32]]:
    """A prompt in the pieces that `LLM` computes at once."""
    return (tokens[start : start + CHUNK] for start in range(0, tokens.size, CHUNK))


def _touched(executor: TimedExecutor, test: Test) -> dict[str, int]:
    """Weights are read once a step for the whole batch, the cache of every sequence."""
    parts = executor.touched_bytes(test.depth + test.tokens // 2)
    return {part: size * (test.batch if part == "kv" else 1) for part, size in parts.items()}


def _check(test: Test, logits: NDArray[np.float32]) -> None:
    if not np.isfinite(logits).all():
        raise NumericsError(f"{test.label}: the logits are not finite", fix="check the model's weights")
