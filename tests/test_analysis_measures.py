"""The measures of an analysis one by one, on numbers that can be checked by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu.analysis.attention import Attention, attend
from dejavu.analysis.blocks import Blocks
from dejavu.analysis.heads import HeadConcentration
from dejavu.analysis.overlap import Overlap
from dejavu.analysis.pieces import FEWEST, inputs, piece_length, split_pieces
from dejavu.analysis.sets import count_at, jaccard
from dejavu.analysis.similarity import Similarity, cosine
from dejavu.analysis.usage import Usage, Zeros
from dejavu.errors import InputError
from dejavu.evaluation.perplexity import Document
from dejavu.executor import Trace
from dejavu.models.loading import open_model
from dejavu.reference import ReferenceExecutor
from dejavu.reference.selection import highest
from tiny_models import CASES, prompt, relative_error
from tiny_relu import CONFIG, half_dead
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


def fake_config(**fields: Any) -> Any:
    return SimpleNamespace(**({"n_layers": 1, "n_heads": 1, "base_neurons": 4} | fields))


def fake_trace(hidden: Any, **fields: Any) -> Trace:
    """A trace of one layer from `hidden` [t, f]."""
    values = np.array(hidden, np.float32)[None]
    rest = {"attn_input": np.zeros((1, values.shape[1], 2)), "head_norm": np.ones((1, values.shape[1], 1))}
    rest |= {
        "mlp_input": rest["attn_input"],
        "gate": values,
        "head_input": np.zeros((0, 2)),
        "logits": np.zeros((0, 1)),
        "chosen": values[:, :0],
    } | fields
    return Trace(hidden=values, **rest)


@given(st.integers(1, 40), st.floats(0.01, 1), st.integers(0, 99))
def test_a_mask_holds_the_largest(n: int, density: float, seed: int) -> None:
    scores = np.random.default_rng(seed).permutation(n * 3).reshape(3, n).astype(np.float32)
    mask = highest(scores, count_at(density, n))
    assert (mask.sum(axis=1) == count_at(density, n)).all()
    for row, chosen in zip(scores, mask, strict=True):
        assert row[chosen].min() >= max(row[~chosen], default=-1)


def test_jaccard_is_intersection_over_union() -> None:
    a = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    b = np.array([[0, 1, 1, 0], [1, 0, 1, 0]], bool)
    assert jaccard(a, b).tolist() == [1 / 3, 1 / 2]


def test_zeros_and_usage_count_exactly() -> None:
    zeros, usage = Zeros(fake_config()), Usage(fake_config())
    for hidden in ([[0, 1, -2, 0], [0, 3, 0, 0]], [[0, 2, 0, 0]]):
        zeros.add(fake_trace(hidden))
        usage.add(fake_trace(hidden))
    assert zeros.result() == {"share": [8 / 12], "mean": 8 / 12, "never_active": [0.5]}
    assert usage.neurons.tolist() == [[0, 2, 2 / 3, 0]]
    assert usage.heads.tolist() == [[1]]


def test_similarity_compares_layers_at_their_distance() -> None:
    turned = np.array([[[1, 0]], [[1, 1]], [[0, 2]]], np.float32)  # 45 degrees a layer
    similarity = Similarity(fake_config(n_layers=3))
    similarity.add(fake_trace([[0]], attn_input=turned, mlp_input=np.ones_like(turned)))
    result = similarity.result()
    assert [entry["distance"] for entry in result["attention"]] == [1, 2]
    np.testing.assert_allclose(result["attention"][0]["cosine"], [0.5**0.5, 0.5**0.5], rtol=1e-6)
    np.testing.assert_allclose(result["attention"][1]["cosine"], [0], atol=1e-7)
    np.testing.assert_allclose([entry["mean"] for entry in result["mlp"]], 1, rtol=1e-6)
    assert cosine(np.zeros(3), np.ones(3)) == 0


def scores(rows: list[list[int]], n: int) -> NDArray[np.float32]:
    """One layer in which token t scores 1 on the neurons rows[t] and 0 elsewhere."""
    out = np.zeros((1, len(rows), n), np.float32)
    for t, chosen in enumerate(rows):
        out[0, t, chosen] = 1
    return out


def test_equal_tokens_share_everything() -> None:
    usage = np.array([[9, 9, 0, 0, 0, 0, 0, 0, 0, 0]], float)
    overlap = Overlap(usage, pieces=1, seed=0)
    overlap.add(scores([[0, 1]] * 40, 10))
    fifth = overlap.result()[1]
    assert fifth["density"] == pytest.approx(0.2)
    assert (
        fifth["neighbours_jaccard_mean"] == fifth["static_jaccard_mean"] == fifth["static_coverage_mean"] == 1
    )
    assert [(u["batch"], u["mean"]) for u in fifth["unions"]] == [(b, 0.2) for b in (2, 4, 8, 16, 32)]
    np.testing.assert_allclose(fifth["unions"][0]["chance"], 1 - 0.8**2)


def test_zeros_are_in_no_set() -> None:
    overlap = Overlap(np.ones((1, 10)), pieces=1, seed=0)
    overlap.add(scores([[2 * i, 2 * i + 1] for i in range(5)], 10))
    half = overlap.result()[2]  # asked for 5 of 10, where two are not zero
    assert half["density"] == pytest.approx(0.2)
    assert half["neighbours_jaccard_mean"] == 0
    assert half["unions"][0]["mean"] == pytest.approx(0.4)
    assert half["static_coverage_mean"] == pytest.approx(0.2)  # of the fixed set's first two
    uneven = Overlap(np.ones((2, 10)), pieces=1, seed=0)
    few, many = scores([[0]] * 8, 10)[0], scores([[0, 1, 2, 3, 4]] * 8, 10)[0]
    uneven.add(np.stack([few, many]))
    found = uneven.result()[2]
    assert found["density"] == pytest.approx(0.3)
    assert found["unions"][0]["chance"] == pytest.approx(((1 - 0.9**2) + (1 - 0.5**2)) / 2)
    assert found["chance_jaccard"] == pytest.approx((0.1 / 1.9 + 0.5 / 1.5) / 2)
    nothing = Overlap(np.ones((1, 10)), pieces=1, seed=0)
    nothing.add(np.zeros((1, 4, 10), np.float32))
    assert nothing.result()[0]["neighbours_jaccard_mean"] == nothing.result()[0]["static_coverage_mean"] == 1


def test_unlike_tokens_share_nothing() -> None:
    usage = np.array([[9, 9, 0, 0, 0, 0, 0, 0, 0, 0]], float)
    overlap = Overlap(usage, pieces=1, seed=0)
    overlap.add(scores([[2 * i, 2 * i + 1] for i in range(5)], 10))
    fifth = overlap.result()[1]
    assert fifth["neighbours_jaccard_mean"] == 0
    assert fifth["static_jaccard_mean"] == fifth["static_coverage_mean"] == pytest.approx(0.2)
    assert [(u["batch"], u["mean"]) for u in fifth["unions"]] == [
        (2, pytest.approx(0.4)),
        (4, pytest.approx(0.8)),
    ]


def split(*lengths: int, **options: Any) -> Any:
    documents = [Document(tuple(range(1, n + 1)), (0,)) for n in lengths]
    config = fake_config(max_context=4096, d_model=8, d_ff=8, vocab_size=9, **options)
    return split_pieces(documents, config)


def test_pieces_are_short_and_in_two_halves() -> None:
    pieces = split(2500, 20, 3, 1800)
    lengths = [[len(piece.tokens) for piece in half] for half in (pieces.calibration, pieces.evaluation)]
    assert lengths == [[511, 511, 511, 511, 456], [20, 511, 511, 511, 267]]
    assert pieces.tokens == 2500 + 20 + 1800
    assert inputs(pieces.calibration[1])[:2].tolist() == [0, 512]
    assert [len(piece.tokens) for piece in split(256).evaluation] == [32] * 4  # short texts: shorter pieces
    assert piece_length(fake_config(max_context=33, d_model=8, d_ff=8)) == 32
    assert piece_length(fake_config(max_context=4096, d_model=4096, d_ff=16384, n_layers=32)) < 128


@pytest.mark.parametrize("lengths", [(), (250,), (15,) * 40])
def test_too_little_text_is_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=f"at least {FEWEST} are needed"):
        split(*lengths)


ATTENTION = ["llama", "qwen3", "gemma2", "gemma3", "mistral-window", "opt", "opt-350m", "bloom", "neox"]


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_the_references(name: str, tiny_folder: Callable[[str], Path]) -> None:
    model = open_model(tiny_folder(name))
    config = model.config
    trace = ReferenceExecutor(config, model.weights).trace(prompt(CASES[name]))
    for layer in range(config.n_layers):
        found = attend(config, model.weights, layer, trace.attn_input[layer])
        np.testing.assert_allclose(found.shares.sum(axis=-1), 1, rtol=1e-5)
        sizes = np.linalg.norm(found.mixed.reshape(len(found.mixed), config.n_heads, -1), axis=-1)
        assert relative_error(sizes, trace.head_norm[layer]) < TOLERANCES["chunked_vs_whole"]


def test_heads_are_told_apart() -> None:
    t = 64
    even = np.tril(np.ones((t, t))) / np.arange(1, t + 1)[:, None]
    first = np.zeros((t, t))
    first[:, 0] = 1
    itself = np.eye(t)
    shares = np.stack([even, first, itself]).astype(np.float32)
    heads = HeadConcentration(fake_config(n_heads=3))
    norms = np.tile(np.array([1, 3, 2], np.float32), (t, 1))
    heads.add(0, Attention(np.eye(t, dtype=np.float32), shares, np.zeros((t, 3))), norms)
    result = heads.result()
    np.testing.assert_allclose(result["entropy"], [[1, 0, 0]], atol=1e-6)
    assert result["heaviest_key"][0][1:] == [1, 1]
    np.testing.assert_allclose(result["heaviest_key"][0][0], np.mean(1 / np.arange(16, 65, 4)), rtol=1e-6)
    assert result["in_top_half"] == [[0, 1, 1]]
    assert (result["uniform"], result["heavy_hitters"], result["sinks"], result["heads"]) == (1, 2, 1, 3)
    assert (result["uniform_in_top_half"], result["heavy_in_top_half"]) == (0, 1)


def test_a_steep_first_head_hides_no_keys() -> None:
    t = 64
    even = np.tril(np.ones((t, t))) / np.arange(1, t + 1)[:, None]
    heads = HeadConcentration(fake_config(n_heads=2))
    shares = np.stack([np.eye(t), even]).astype(np.float32)  # the first one's share of far keys underflows
    norms = np.ones((t, 2), np.float32)
    heads.add(0, Attention(np.eye(t, dtype=np.float32), shares, np.zeros((t, 2))), norms)
    np.testing.assert_allclose(heads.result()["entropy"], [[0, 1]], atol=1e-6)


def test_gathering_is_how_much_nearer_the_attended_mean_is() -> None:
    t = 32
    normed = np.zeros((t, 2), np.float32)
    normed[::2, 0] = normed[1::2, 1] = 1  # two kinds of tokens, in turn
    same = np.tril((np.arange(t)[:, None] - np.arange(t)) % 2 == 0, -1).astype(float) + 1e-9 * np.tril(
        np.ones((t, t))
    )
    shares = (same / same.sum(axis=1, keepdims=True))[None].astype(np.float32)
    heads = HeadConcentration(fake_config())
    heads.add(0, Attention(normed, shares, np.zeros((t, 1))), np.ones((t, 1), np.float32))
    # the attended mean is of its kind: cosine 1; before an odd one (but for the first) both kinds are as many
    assert heads.result()["gathering"][0][0] == pytest.approx(1 - 0.5**0.5, abs=1e-3)


def test_blocks_lose_nothing_with_the_dead_half() -> None:
    weights = half_dead()
    executor = ReferenceExecutor(CONFIG, weights)
    tokens = np.random.default_rng(0).integers(0, 40, 30).astype(np.int32)
    trace = executor.trace(tokens)
    usage = Usage(CONFIG)
    usage.add(trace)
    blocks = Blocks(CONFIG, weights, usage, seed=0)
    blocks.add(trace)
    result = blocks.result()["blocks"]
    assert result["tokens"] == 30
    for selector, curve in result["neurons"]["relative_error"].items():
        errors = {entry["density"]: entry["mean"] for entry in curve}
        assert set(errors) > {0.5}
        if selector == "random":
            assert errors[0.5] > 0.1
        else:  # even a fixed set: the same half fires for every token
            assert errors[0.5] == 0
            assert errors[0.203125] > 0.1
        values = [errors[density] for density in sorted(errors)]
        assert selector == "random" or values == sorted(values, reverse=True)
    assert [entry["density"] for entry in result["heads"]["relative_error"]["oracle"]] == [0.25, 0.5, 0.75]
    shares = result["neurons"]["share_for_energy"]
    for ninety, most in zip(shares["0.90"], shares["0.99"], strict=True):
        assert 0 < ninety < most <= 0.5
    # |F(x)| / |x| from the residual stream itself
    added = np.linalg.norm(trace.mlp_input - trace.attn_input, axis=-1) / np.linalg.norm(
        trace.attn_input, axis=-1
    )
    np.testing.assert_allclose(result["attention_added"]["ratio"], added.mean(axis=1), rtol=1e-4)
    added = np.linalg.norm(trace.attn_input[1:] - trace.mlp_input[:-1], axis=-1)
    added /= np.linalg.norm(trace.mlp_input[:-1], axis=-1)
    np.testing.assert_allclose(result["mlp_added"]["ratio"][:-1], added.mean(axis=1), rtol=1e-4)


def test_the_energy_a_share_keeps_is_measured() -> None:
    """The share for 90% really keeps about 90% of the energy (the curve is interpolated)."""
    weights = half_dead()
    trace = ReferenceExecutor(CONFIG, weights).trace(np.arange(40, dtype=np.int32))
    usage = Usage(CONFIG)
    usage.add(trace)
    blocks = Blocks(CONFIG, weights, usage, seed=0)
    blocks.add(trace)
    for layer, share in enumerate(blocks.result()["blocks"]["neurons"]["share_for_energy"]["0.90"]):
        down, hidden = weights.read(f"layers.{layer}.down.weight"), trace.hidden[layer]
        output = hidden @ down.T + weights.read(f"layers.{layer}.down.bias")
        lost = (hidden * ~highest(np.abs(hidden), round(share * 64))) @ down.T
        energy = (np.linalg.norm(lost, axis=1) ** 2 / np.linalg.norm(output, axis=1) ** 2).mean()
        assert energy == pytest.approx(0.1, abs=0.05)
