"""Prefill by an access plan selects for every token as decoding does; halves of rows are prefilled as whole ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavu import _core
from dejavu.evaluation.likelihood import token_nll
from dejavu.plan import VocabularySketch
from test_sparse_parity import KINDS, by_decoding, pair, plan_of
from tiny_models import CASES, prompt, relative_error
from tolerances import TOLERANCES, prefill_tolerance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.engine import NativeExecutor

    Folder = Callable[[str], Path]

GROUPED = ("int8", "int4")
F32_PRODUCTS = [isa for isa in _core.isas() if isa in ("portable", "avx2", "avx512")]


def far_off(found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float) -> int:
    """How many tokens differ by more than `tolerance`."""
    return sum(relative_error(a, b) > tolerance for a, b in zip(found, expected, strict=True))


def each_after_the_others(native: NativeExecutor, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Logits [t, vocab] of every token decoded by the plan behind what a masked pass wrote of those before it.

    A close call that falls differently spoils the logits of its own token only, as no other reads its keys and values.
    """
    whole = native.new_cache()
    native.prefill(tokens, whole, sparse=True)
    rows = []
    for t in range(len(tokens)):
        cache = whole.fork()
        cache.truncate(t)
        rows.append(native.decode(tokens[t : t + 1], [cache]))
    return np.concatenate(rows)


@pytest.mark.parametrize("name", ["llama-biases", "opt-350m", "bloom", "neox", "gemma3"])
@pytest.mark.parametrize("kind", ["dense", *(kind for kind in KINDS if not kind.startswith("sketch"))])
def test_every_selector_on_families(name: str, kind: str, tiny_folder: Folder) -> None:
    native, _ = pair(tiny_folder(name))
    head_kind = {"oracle": "oracle", "low-rank": "low-rank-ahead-1", "random": "random"}.get(kind, "static")
    native.set_plan(plan_of(native, kind, head_kind=head_kind, rank=5))
    for seed in (0, 1):
        tokens = prompt(CASES[name], seed)
        native.reset_stats()
        found = native.prefill(tokens, native.new_cache(), all_logits=True, sparse=True)
        masked = native.last_stats
        native.reset_stats()
        by_decoding(native, tokens)
        for what in ("tokens", "neurons", "heads"):
            assert masked[what] == native.last_stats[what]
        # Sums in another order may decide a near tie differently.
        assert far_off(found, each_after_the_others(native, tokens), TOLERANCES["native_f32"]) <= 1


@pytest.mark.parametrize("isa", F32_PRODUCTS)
@pytest.mark.parametrize("codec", GROUPED)
def test_sketches(isa: str, codec: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded inputs decide a few close calls differently."""
    monkeypatch.setenv("DEJAVU_ISA", isa)
    native, _ = pair(tiny_folder("llama-head-dim"), codec, leading=4)
    tokens = prompt(CASES["llama-head-dim"])
    for kind in (
        "static",
        "low-rank-ahead-2",
        "sketch-4",
        "sketch-ahead-1",
        "sketch-4-values",
        *(["sketch-2", "sketch-3", "sketch-2-values"] if codec == "int8" else []),
    ):
        native.set_plan(plan_of(native, kind, head_kind="random", rank=2))
        found = native.prefill(tokens, native.new_cache(), all_logits=True, sparse=True)
        expected = each_after_the_others(native, tokens)
        assert far_off(found, expected, TOLERANCES[f"native_{codec}"]) <= 2


SCORED = [
    *((codec, kind) for codec in ("bf16", "int8", "int4") for kind in ("static", "low-rank")),
    *((codec, kind) for codec in GROUPED for kind in ("sketch-4", "sketch-4-values")),
]


@pytest.mark.parametrize(("codec", "kind"), SCORED)
def test_what_is_scored_is_what_is_decoded(codec: str, kind: str, tiny_folder: Folder) -> None:
    """Perplexities come from masked passes, which round operands to bf16 on some machines: they stand for decoding."""
    native, _ = pair(tiny_folder("llama-long"), codec, leading=4 if kind.startswith("sketch") else 0)
    native.set_plan(plan_of(native, kind, head_kind="random"))
    tokens = prompt(CASES["llama-long"])
    masked = native.prefill(tokens, native.new_cache(), all_logits=True, sparse=True)
    scored, decoded = (token_nll(rows[:-1], tokens[1:]) for rows in (masked, by_decoding(native, tokens)))
    assert abs(scored.mean() - decoded.mean()) <= TOLERANCES["scored_vs_decoded"]
    # To a random model every text is as unlikely as any other: the mean alone would hide what single tokens show.
    assert np.abs(scored - decoded).mean() <= TOLERANCES["scored_vs_decoded_each"]
    native.set_plan(None)
    dense = token_nll(by_decoding(native, tokens)[:-1], tokens[1:])
    assert np.abs(dense - decoded).mean() > 5 * TOLERANCES["scored_vs_decoded_each"]


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("codec", GROUPED)
@pytest.mark.parametrize("name", ["llama-head-dim", "llama-tail", "opt-350m", "llama-sharded"])
def test_dense_over_halves(
    isa: str, codec: str, name: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEJAVU_ISA", isa)
    native, reference = pair(tiny_folder(name), codec, leading=4)
    tokens = prompt(CASES[name])
    expected = reference.prefill(tokens, reference.new_cache(), all_logits=True)
    found = native.prefill(tokens, native.new_cache(), all_logits=True)
    assert relative_error(found, expected) <= prefill_tolerance(codec, isa)
    last = native.prefill(tokens, native.new_cache())
    assert relative_error(last, expected[-1:]) <= prefill_tolerance(codec, isa)


@pytest.mark.parametrize("codec", GROUPED)
def test_vocabulary_sketch(codec: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJAVU_ISA", "portable")
    native, _ = pair(tiny_folder("llama-head-dim"), codec, leading=4)
    c = native.config
    sketch = VocabularySketch(
        bits=4,
        exact=20,
        mean=np.linspace(-1, 2, c.embed_dim, dtype=np.float32),
        directions=np.eye(7, c.embed_dim),
        missing=np.sin(np.arange(7.0 * c.vocab_size)).reshape(c.vocab_size, 7),
    )
    native.set_plan(plan_of(native, "dense", vocabulary=sketch))
    tokens = prompt(CASES["llama-head-dim"])
    found = native.prefill(tokens, native.new_cache(), all_logits=True, sparse=True)
    assert far_off(found, each_after_the_others(native, tokens), TOLERANCES[f"native_{codec}"]) <= 1
    last = native.prefill(tokens, native.new_cache(), sparse=True)
    np.testing.assert_array_equal(last, found[-1:])


@pytest.mark.parametrize("threads", [1, 3, 7])
@pytest.mark.parametrize("kind", ["low-rank-ahead-1", "threshold", "oracle"])
def test_any_number_of_threads(threads: int, kind: str, tiny_folder: Folder) -> None:
    native, reference = pair(tiny_folder("llama-long"), threads=threads)
    plan = plan_of(native, kind, head_kind="oracle", rank=3)
    tokens = prompt(CASES["llama-long"])[:100]
    native.set_plan(plan)
    reference.set_plan(plan)
    expected = reference.prefill(tokens, reference.new_cache(), all_logits=True, sparse=True)
    found = native.prefill(tokens, native.new_cache(), all_logits=True, sparse=True)
    assert far_off(found, expected, TOLERANCES["native_f32"]) <= len(tokens) // 8


def test_without_sparse_the_plan_is_left_alone(tiny_folder: Folder) -> None:
    native, _ = pair(tiny_folder("llama"))
    tokens = prompt(CASES["llama"])
    dense = native.prefill(tokens, native.new_cache(), all_logits=True)
    trace = native.trace(tokens)
    native.set_plan(plan_of(native, "static", head_kind="static"))
    np.testing.assert_array_equal(native.prefill(tokens, native.new_cache(), all_logits=True), dense)
    np.testing.assert_array_equal(native.trace(tokens).hidden, trace.hidden)
    assert native.last_stats["tokens"] == 0
