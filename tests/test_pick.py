"""The compiled choice of units against its twin, `dejavu.reference.selection.pick`: equal lists, whatever the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavu import _core
from dejavu.plan import Oracle
from dejavu.reference import selection
from row_samples import ISAS, Walled

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Scores = NDArray[np.float32]

SIZES = (1, 7, 16, 17, 255, 257, 2047, 2048, 2051, 8192, 49_152)


def picked(isa: str, scores: Scores, k: int = 0, threshold: float = 0.0) -> NDArray[np.int32]:
    found = np.full(len(scores), -7, np.int32)
    return found[: _core.pick(isa, scores, k, threshold, found)]


def best(scores: Scores, k: int) -> NDArray[np.int64]:
    return np.sort(np.argsort(-scores, kind="stable")[:k])


def mixture(n: int) -> Scores:
    rng = np.random.default_rng(n)
    return np.where(rng.random(n) < 0.1, 100, 1).astype(np.float32) * rng.standard_normal(n).astype(
        np.float32
    )


KINDS: dict[str, Callable[[int], Scores]] = {
    "normal": lambda n: np.random.default_rng(n).standard_normal(n).astype(np.float32),
    "mixture": mixture,
    "rising": lambda n: np.arange(n, dtype=np.float32),
    "falling": lambda n: -np.arange(n, dtype=np.float32),
    "alike": lambda n: np.zeros(n, np.float32),
    "few values": lambda n: np.random.default_rng(n).integers(-2, 3, n).astype(np.float32),
    # What is looked at first, one in n / 256, says nothing of the others: all are high, or all are low.
    "sample too high": lambda n: (
        (np.arange(n) % max(n // 256, 1) == 0).astype(np.float32) * 5 + mixture(n) / 1000
    ),
    "sample too low": lambda n: (
        (np.arange(n) % max(n // 256, 1) != 0).astype(np.float32) * 5 + mixture(n) / 1000
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("isa", ISAS)
def test_the_highest(isa: str, n: int, kind: str) -> None:
    scores = KINDS[kind](n)
    for k in sorted({1, 2, n // 100, n // 10, n // 3, n // 2, n - 1, n, n + 1} - {0, -1}):
        np.testing.assert_array_equal(picked(isa, scores, k), best(scores, k))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("isa", ISAS)
def test_above_a_threshold(isa: str, n: int, kind: str) -> None:
    scores = KINDS[kind](n)
    for threshold in (-np.inf, *np.quantile(scores, (0, 0.5, 0.9, 1)).astype(np.float32), np.inf):
        expected = np.flatnonzero(scores > np.float32(threshold))
        np.testing.assert_array_equal(picked(isa, scores, threshold=float(threshold)), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_nan_is_above_nothing(isa: str) -> None:
    scores = np.array([1, np.nan, 3, -np.nan, 5] * 20, np.float32)
    np.testing.assert_array_equal(picked(isa, scores, threshold=2.0), np.flatnonzero(scores > 2))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("skew", [1, 7])
@pytest.mark.parametrize("n", [1, 15, 17, 300, 2051])
def test_nothing_is_written_beside(isa: str, skew: int, n: int) -> None:
    """A list is as long as the scores: where all are chosen, no room is left."""
    scores, walled = KINDS["normal"](n), Walled(skew)
    for k in (1, n // 2 + 1, n):
        found = walled(np.full(n, -7, np.int32))
        count = _core.pick(isa, walled(scores), k, 0.0, found)
        np.testing.assert_array_equal(found[:count], best(scores, k))
    everything = walled(np.full(n, -7, np.int32))
    assert _core.pick(isa, walled(scores), 0, -np.inf, everything) == n
    np.testing.assert_array_equal(everything, np.arange(n))
    walled.check()


@settings(max_examples=150, deadline=None)
@given(
    scores=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=300),
    repeats=st.integers(1, 20),
    density=st.floats(0.01, 1),
    isa=st.sampled_from(ISAS),
)
def test_as_its_twin(scores: list[float], repeats: int, density: float, isa: str) -> None:
    row = np.array(scores * repeats, np.float32) + np.float32(0)
    rule = Oracle(density=density)
    expected = np.flatnonzero(selection.pick(row[None], rule)[0])
    np.testing.assert_array_equal(picked(isa, row, rule.count(len(row))), expected)
