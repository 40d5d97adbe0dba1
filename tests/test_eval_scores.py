"""Log-likelihoods against a direct computation, metrics against their definitions, divergence against float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu.engine import NativeExecutor
from dejavu.engine.packed import pack_in_memory
from dejavu.errors import NumericsError
from dejavu.evaluation import likelihood
from dejavu.evaluation.divergence import cut, measure_window, text_metrics, token_kl
from dejavu.evaluation.encoding import Prompt
from dejavu.evaluation.likelihood import Score, pack, score, score_by_decoding
from dejavu.evaluation.metrics import (
    average,
    choice_metrics,
    choose,
    cloze_metrics,
    generation_metrics,
    macro_f1,
    mean,
    mean_per_token,
    token_f1,
)
from dejavu.evaluation.perplexity import Document, measure_perplexity
from dejavu.evaluation.tasks import Item
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, KvPolicy, Random, Threshold
from dejavu.reference import ReferenceExecutor
from eval_extra import eval_extra
from tiny_chat import build_tiny_chat
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Pair = tuple[NativeExecutor, ReferenceExecutor]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    model = open_model(build_tiny_chat(tmp_path_factory.mktemp("tiny"), context=1500))
    native = NativeExecutor(pack_in_memory(model.config, model.weights, "f32", 1), kv_dtype="f32", threads=2)
    yield native, ReferenceExecutor(model.config, model.weights)
    model.close()


def plan_for(executor: ReferenceExecutor, kv: str = "write") -> AccessPlan:
    c = executor.config
    return AccessPlan.uniform(
        executor.fingerprint,
        c.n_layers,
        neurons=Threshold(density=0.4),
        heads=Random(threshold=0.8, seed=3),  # K/V groups without a chosen head are late
        kv=KvPolicy(kv, 8),  # type: ignore[arg-type]
    )


def tokens(seed: int, *lengths: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, 256, n).tolist()) for n in lengths]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


def direct(
    executor: ReferenceExecutor, context: tuple[int, ...], target: tuple[int, ...], *, sparse: bool
) -> tuple[float, bool]:
    """The whole sequence in one call of the specification."""
    ids = np.array(context + target, np.int32)
    logits = executor.prefill(ids[:-1], executor.new_cache(), all_logits=True, sparse=sparse)
    rows = logits[len(context) - 1 :]
    logs = log_softmax(rows)
    greedy = all(int(row.argmax()) == t for row, t in zip(rows, target, strict=True))
    return float(sum(row[t] for row, t in zip(logs, target, strict=True))), greedy


PROMPTS = [
    Prompt(tokens(0, 9)[0], tuple(tokens(1, 1, 5, 3))),
    Prompt(tokens(2, 1)[0], tuple(tokens(3, 1))),
    Prompt(tokens(4, 520)[0], tuple(tokens(5, 2, 700))),
    *(Prompt(tokens(6 + i, 4)[0], tuple(tokens(60 + i, 3, 2))) for i in range(40)),
]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kv", ["write", "recompute"])
def test_scores_equal_a_direct_computation(pair: Pair, sparse: bool, kv: str) -> None:
    """Contexts and targets beyond a chunk, single tokens, more branches than one call takes."""
    native, reference = pair
    plan = plan_for(reference, kv)
    for executor in pair:
        executor.set_plan(plan)
    expected = [[direct(reference, p.context, t, sparse=sparse) for t in p.targets] for p in PROMPTS]
    for executor in pair:
        found = score(executor, PROMPTS, sparse=sparse)
        for prompt, scores, wanted in zip(PROMPTS, found, expected, strict=True):
            for target, one, (logprob, greedy) in zip(prompt.targets, scores, wanted, strict=True):
                assert one.logprob == pytest.approx(logprob, abs=1e-4 * len(target))
                assert one.greedy == greedy
    if sparse:
        for prompt, wanted in zip(PROMPTS[:2], expected, strict=False):
            decoded = score_by_decoding(native, prompt)
            assert [s.logprob for s in decoded] == pytest.approx([w[0] for w in wanted], abs=1e-3)


def test_greedy_continuations_are_seen(pair: Pair) -> None:
    reference = pair[1]
    for executor in pair:
        executor.set_plan(None)
    cache, (context,) = reference.new_cache(), tokens(9, 6)
    row, likely = reference.prefill(np.array(context, np.int32), cache)[0], []
    for _ in range(4):
        likely.append(int(row.argmax()))
        row = reference.decode(np.array(likely[-1:], np.int32), [cache])[0]
    other = (*likely[:3], (likely[3] + 1) % 256)
    for executor in pair:
        found = score(executor, [Prompt(context, (tuple(likely), other))])[0]
        assert [s.greedy for s in found] == [True, False]
        assert [s.greedy for s in score_by_decoding(executor, Prompt(context, (tuple(likely),)))] == [True]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("all_logits", [False, True])
def test_batches_equal_one_after_another(pair: Pair, sparse: bool, all_logits: bool) -> None:
    reference = pair[1]
    for executor in pair:
        executor.set_plan(plan_for(reference))
    pieces = [np.array(t, np.int32) for t in tokens(11, 7, 1, 130, 2)]
    starts = [np.array(t, np.int32) for t in tokens(12, 3, 140, 1, 5)]
    expected = []
    for start, piece in zip(starts, pieces, strict=True):
        cache = reference.new_cache()
        reference.prefill(start, cache, sparse=sparse)
        expected.append(reference.prefill(piece, cache, all_logits=all_logits, sparse=sparse))
    for executor in pair:
        caches = [executor.new_cache() for _ in pieces]
        executor.prefill_batch(starts, caches, sparse=sparse)
        found = executor.prefill_batch(pieces, caches, all_logits=all_logits, sparse=sparse)
        wanted = np.concatenate(expected)
        assert np.abs(found - wanted).max() / np.abs(wanted).max() <= TOLERANCES["native_f32_prefill"]
        assert [c.length for c in caches] == [len(a) + len(b) for a, b in zip(starts, pieces, strict=True)]
    with pytest.raises(ValueError):
        reference.prefill_batch(pieces, [])


def test_nan_is_an_error(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "token_nll", lambda logits, targets: np.full(len(targets), np.nan))
    with pytest.raises(NumericsError, match="NaN"):
        score(pair[1], PROMPTS[:1])


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 50), st.integers(1, 6))
def test_packs_hold_everything_once(lengths: list[int], most: int, count: int) -> None:
    packs = list(pack(lengths, tokens=most, count=count))
    assert [i for p in packs for i in p] == list(range(len(lengths)))
    assert all(len(p) <= count for p in packs)
    assert all(len(p) == 1 or sum(lengths[i] for i in p) <= most for p in packs)


# --- metrics


def scores(*logprobs: float) -> list[Score]:
    return [Score(value, False) for value in logprobs]


def test_choice_metrics() -> None:
    items = [
        Item(1, (("c", " ab"), ("c", " abcdefgh")), 0),
        Item(2, (("c", " ab"), ("c", " abcdefgh")), 1),
        Item(3, (("c", " é"), ("c", " ee")), 1),  # both have three bytes
    ]
    found = [scores(-3.0, -6.0), scores(-3.0, -9.5), scores(-2.0, -1.9)]
    assert [choose(i, s) for i, s in zip(items, found, strict=True)] == [0, 0, 1]
    assert [choose(i, s, per_byte=True) for i, s in zip(items, found, strict=True)] == [1, 0, 1]
    metrics = choice_metrics(items, found)
    assert metrics["acc"].value == pytest.approx(2 / 3)
    assert metrics["acc"].stderr == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 2))  # sqrt(p (1 - p) / (n - 1))
    assert metrics["acc_norm"].value == pytest.approx(1 / 3)
    assert "macro_f1" not in metrics
    assert choice_metrics(items[:2], found[:2])["macro_f1"].value == pytest.approx((2 / 3 + 0) / 2)
    same = [Item(1, (("Ann", " ran"), ("Bob", " ran")), 1)] * 2
    assert "macro_f1" not in choice_metrics(same, [scores(-1, -2)] * 2)


def test_macro_f1() -> None:
    # class 0: 2 * 1 / (2 + 1); class 1: 2 * 1 / (1 + 2); class 2: 0 / (1 + 1)
    assert macro_f1([0, 0, 1, 2], [0, 1, 1, 2]) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert macro_f1([0, 0, 1], [0, 2, 1]) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_cloze_metrics() -> None:
    found = cloze_metrics([Score(-1.0, True), Score(-3.0, False)])
    assert found["acc"].value == 0.5
    assert found["perplexity"].value == pytest.approx(math.exp(2))
    assert found["perplexity"].stderr == pytest.approx(math.exp(2) * 1.0)
    assert cloze_metrics([Score(-1e4, True)])["perplexity"].value == math.inf


def test_generation_metrics() -> None:
    targets, texts = ["The cat sat.", "two dogs", ""], [" cat sat", "two cats", "!"]
    found = generation_metrics(targets, texts)
    assert found["exact_match"].value == pytest.approx(2 / 3)
    assert found["f1"].value == pytest.approx((1 + 0.5 + 1) / 3)
    assert token_f1("a b c d", "b b") == pytest.approx(2 * 1 / (3 + 2))


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = eval_extra("sacrebleu")
    targets, texts = ["the cat sat on the mat today"], ["the cat sat on the mat"]
    wanted = sacrebleu.corpus_bleu(texts, [targets]).score
    assert generation_metrics(targets, texts)["bleu"].value == pytest.approx(wanted)


def test_packages_of_the_extra_can_be_made_a_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEJAVU_TEST_EVAL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="pip install"):
        eval_extra("no_such_package")
    monkeypatch.setenv("DEJAVU_TEST_EVAL", "1")
    with pytest.raises(pytest.fail.Exception, match="no_such_package cannot be imported"):
        eval_extra("no_such_package")


def test_means() -> None:
    assert mean([1.0]).stderr is None
    assert mean_per_token([2.0], [4]).value == 0.5
    pieces = mean_per_token([2.0, 4.0, 3.0], [2, 4, 3])
    assert (pieces.value, pieces.stderr) == (1.0, 0.0)
    rng = np.random.default_rng(0)
    sums = rng.normal(5, 2, 400)
    assert mean_per_token([*sums], [1] * 400).stderr == pytest.approx(mean([*sums]).stderr)
    both = average({"a": {"acc": mean([0.0, 1.0])}, "b": {"acc": mean([1.0, 1.0])}, "c": {"f1": mean([0.0])}})
    assert (both.value, both.stderr) == (0.75, 0.25)


# --- divergence


def test_divergence_equals_the_definition(pair: Pair) -> None:
    native, reference = pair
    plan = plan_for(reference)
    for executor in pair:
        executor.set_plan(None)
    documents = [Document(t) for t in tokens(21, 700, 30, 2)]
    windows = cut(documents, 600)
    assert [w.targets.size for w in windows] == [600, 99, 29, 1]
    kl, same, base_nll, nll = [], 0, 0.0, 0.0
    for window in windows:
        dense = reference.prefill(window.inputs, reference.new_cache(), all_logits=True)
        reference.set_plan(plan)
        sparse = reference.prefill(window.inputs, reference.new_cache(), all_logits=True, sparse=True)
        reference.set_plan(None)
        rows, p, q = np.arange(window.targets.size), log_softmax(dense), log_softmax(sparse)
        p, q = p[-window.targets.size :], q[-window.targets.size :]
        kl.append((np.exp(p) * (p - q)).sum(axis=1))
        same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
        base_nll -= p[rows, window.targets].sum()
        nll -= q[rows, window.targets].sum()
    native.set_plan(plan)
    metrics = text_metrics([measure_window(native, reference, w, sparse=True) for w in windows])
    every = np.concatenate(kl)
    assert metrics["kl_mean"].value == pytest.approx(every.mean(), rel=1e-3)
    assert metrics["kl_median"].value == pytest.approx(np.median(every), rel=1e-3)
    assert metrics["kl_p99.9"].value == pytest.approx(np.quantile(every, 0.999), rel=1e-3)
    assert metrics["same_top1"].value == pytest.approx(same / every.size, abs=2 / every.size)
    assert metrics["ppl_ratio"].value == pytest.approx(math.exp((nll - base_nll) / every.size), rel=1e-4)
    assert metrics["base_perplexity"].value == pytest.approx(math.exp(base_nll / every.size), rel=1e-4)
    whole = measure_perplexity(native, documents, path="masked", window=600)
    assert metrics["perplexity"].value == pytest.approx(whole.perplexity, rel=1e-5)
    native.set_plan(None)
    alone = text_metrics([measure_window(native, None, w) for w in windows])
    assert set(alone) == {"perplexity"}


def test_a_model_does_not_diverge_from_itself(pair: Pair) -> None:
    reference = pair[1]
    reference.set_plan(None)
    window = cut([Document(tokens(31, 50)[0])], 64)[0]
    found = measure_window(reference, reference, window)
    assert found["kl"] == [0.0] * 49
    assert found["same_top1"] == found["tokens"] == 49
    assert found["nll"] == found["base_nll"]


def test_token_kl_is_never_negative_and_sees_small_differences() -> None:
    rng = np.random.default_rng(0)
    base = (rng.normal(size=(4, 3000)) * 5).astype(np.float32)
    other = base + (rng.normal(size=base.shape) * 1e-3).astype(np.float32)
    p, q = log_softmax(base), log_softmax(other)
    np.testing.assert_allclose(token_kl(base, other), (np.exp(p) * (p - q)).sum(axis=1), rtol=1e-6)
    assert (token_kl(base, base + np.float32(3)) >= 0).all()


def test_nan_in_a_text_is_an_error(pair: Pair) -> None:
    class Broken:
        config = pair[1].config

        def new_cache(self) -> Any:
            return None

        def prefill(self, ids: NDArray[np.int32], cache: Any, **_: Any) -> NDArray[np.float32]:
            return np.full((len(ids), 258), np.nan, np.float32)

    with pytest.raises(NumericsError, match="NaN"):
        measure_window(Broken(), None, cut([Document((1, 2, 3))], 8)[0])  # type: ignore[arg-type]
