"""Prefill by an access plan selects for every token as decoding does; halves of rows are prefilled as whole ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavu import _core
from dejavu.plan import VocabularySketch
from test_sparse_parity import KINDS, by_decoding, pair, plan_of
from tiny_models import CASES, prompt, relative_error
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Folder = Callable[[str], Path]

GROUPED = ("int8", "int4")
F32_PRODUCTS = [isa for isa in _core.isas() if isa in ("portable", "avx2", "avx512")]


def far_off(found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float) -> int:
    """How many tokens differ by more than `tolerance`."""
    return sum(relative_error(a, b) > tolerance for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["llama-biases", "opt-350m", "bloom", "neox", "gemma3"])
@pytest.mark.parametrize("kind", ["dense", *(kind for kind in KINDS if not kind.startswith("sketch"))])
def test_every_selector_on_families(name: str, kind: str, tiny_folder: Folder) -> None:
    native, _ = pair(tiny_folder(name))
    head_kind = {"oracle": "oracle", "low-rank": "low-rank-ahead-1", "random": "random"}.get(kind, "static")
    native.set_plan(plan_of(native, kind, head_kind=head_kind, rank=5))
    errors = []
    for seed in (0, 1):
        tokens = prompt(CASES[name], seed)
        native.reset_stats()
        found = native.prefill(tokens, native.new_cache(), all_logits=True, sparse=True)
        masked = native.last_stats
        native.reset_stats()
        expected = by_decoding(native, tokens)
        errors.append(relative_error(found, expected))
        for what in ("tokens", "neurons", "heads"):
            assert masked[what] == native.last_stats[what]
    # Sums in another order may decide a near tie differently, and all that follows; hardly in both prompts.
    assert min(errors) <= TOLERANCES["native_f32"]


@pytest.mark.parametrize("isa", F32_PRODUCTS)
@pytest.mark.parametrize("codec", GROUPED)
def test_sketches(isa: str, codec: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded inputs decide a few close calls differently, and a token that looks at such a one differs too."""
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
        expected = by_decoding(native, tokens)
        assert far_off(found, expected, TOLERANCES[f"native_{codec}"]) <= len(tokens) // 4


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
    assert relative_error(found, expected) <= TOLERANCES[f"native_{codec}_prefill"]
    last = native.prefill(tokens, native.new_cache())
    assert relative_error(last, expected[-1:]) <= TOLERANCES[f"native_{codec}_prefill"]


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
    assert far_off(found, by_decoding(native, tokens), TOLERANCES[f"native_{codec}"]) <= len(tokens) // 8
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
