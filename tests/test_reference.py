"""Behaviour of the reference executor beyond its numbers."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from changed import Changed
from dejavu.codecs import CODECS, Codec, embed_codec, roundtrip
from dejavu.errors import InputError, NumericsError
from dejavu.executor import KV_DTYPES, KvDtype
from dejavu.models.loading import open_model
from dejavu.reference import ReferenceExecutor
from dejavu.reference.cache import round_kv
from tiny_models import CASES, prompt, relative_error
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Folder = Callable[[str], Path]

TOKENS = prompt(CASES["llama"])
SAME = TOLERANCES["chunked_vs_whole"]


@pytest.fixture
def llama(tiny_folder: Folder) -> ReferenceExecutor:
    model = open_model(tiny_folder("llama"))
    return ReferenceExecutor(model.config, model.weights)


@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, len(TOKENS) - 1), max_size=5), name=st.sampled_from(["gemma3", "bloom"]))
def test_chunks_give_the_same_logits(cuts: set[int], name: str, tiny_folder: Folder) -> None:
    model, tokens = open_model(tiny_folder(name)), prompt(CASES[name])
    executor = ReferenceExecutor(model.config, model.weights)
    whole = executor.prefill(tokens, executor.new_cache(), all_logits=True)
    cache = executor.new_cache()
    borders = [0, *sorted(cuts), len(tokens)]
    parts = [executor.prefill(tokens[a:b], cache, all_logits=True) for a, b in pairwise(borders)]
    assert relative_error(np.concatenate(parts), whole) <= SAME
    assert cache.length == len(tokens)


def test_only_the_last_logits_by_default(llama: ReferenceExecutor) -> None:
    last = llama.prefill(TOKENS, llama.new_cache())
    whole = llama.prefill(TOKENS, llama.new_cache(), all_logits=True)
    assert last.shape == (1, 97)
    assert relative_error(last, whole[-1:]) <= SAME


def test_batched_decode_equals_single(llama: ReferenceExecutor) -> None:
    caches = [llama.new_cache() for _ in range(3)]
    for n, cache in enumerate(caches):
        llama.prefill(TOKENS[: 3 + 5 * n], cache)
    single = [llama.decode(TOKENS[n : n + 1], [cache.fork()]) for n, cache in enumerate(caches)]
    assert np.array_equal(llama.decode(TOKENS[:3], caches), np.concatenate(single))
    assert [cache.length for cache in caches] == [4, 9, 14]


def test_truncate_and_fork(llama: ReferenceExecutor) -> None:
    cache = llama.new_cache()
    llama.prefill(TOKENS[:30], cache)
    fork = cache.fork()
    expected = llama.prefill(TOKENS[30:35], cache)
    llama.prefill(TOKENS[:9], fork)  # goes its own way
    fork.truncate(30)
    assert np.array_equal(llama.prefill(TOKENS[30:35], fork), expected)
    cache.truncate(0)
    assert np.array_equal(llama.prefill(TOKENS, cache), llama.prefill(TOKENS, llama.new_cache()))
    for length in (-1, 99):
        with pytest.raises(InputError, match="cannot cut a sequence of 40"):
            cache.truncate(length)


def test_bad_input(llama: ReferenceExecutor) -> None:
    cache = llama.new_cache()
    for tokens, message in (([], "no tokens"), ([97], "vocabulary of 97"), ([-1], "vocabulary")):
        with pytest.raises(InputError, match=message):
            llama.prefill(np.array(tokens, np.int32), cache)
    with pytest.raises(InputError, match="129 tokens exceed the context of 128"):
        llama.prefill(np.zeros(129, np.int32), cache)
    with pytest.raises(InputError, match="2 tokens for 1 sequences"):
        llama.decode(TOKENS[:2], [cache])
    assert cache.length == 0
    llama.prefill(np.zeros(128, np.int32), cache)
    with pytest.raises(InputError, match="exceed the context"):
        llama.decode(TOKENS[:1], [cache])


@pytest.mark.parametrize("options", [{"codec": "int3"}, {"kv_dtype": "f8"}])
def test_unknown_precisions_are_errors(options: dict[str, Any], tiny_folder: Folder) -> None:
    model = open_model(tiny_folder("llama"))
    with pytest.raises(InputError, match="is unknown; there are: f32"):
        ReferenceExecutor(model.config, model.weights, **options)


def test_nan_weights_are_named(tiny_folder: Folder) -> None:
    model = open_model(tiny_folder("llama"))
    broken = model.weights.read("layers.1.up.weight")
    broken[3, 4] = np.nan
    with pytest.raises(NumericsError, match=r"layers\.1\.up\.weight holds NaN"):
        ReferenceExecutor(model.config, Changed(model.weights, {"layers.1.up.weight": broken}))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", ["llama-biases", "opt-350m"])
def test_codecs_round_bundles(name: str, codec: Codec, tiny_folder: Folder) -> None:
    """Rows of d_model values: o and down by column; embedding, head and o never below int8; no other tensor."""
    model = open_model(tiny_folder(name))
    rounded: dict[str, Array] = {}
    for tensor in model.weights.names():
        values = model.weights.read(tensor)
        part = tensor.split(".")[-2]
        if tensor in ("embed.weight", "head.weight"):
            rounded[tensor] = roundtrip(embed_codec(codec), values)
        elif values.ndim == 2 and part in ("q", "k", "v", "gate", "up"):
            rounded[tensor] = roundtrip(codec, values)
        elif values.ndim == 2 and part in ("o", "down"):
            rounded[tensor] = roundtrip(
                embed_codec(codec) if part == "o" else codec, values.T.copy()
            ).T.copy()
    expected = ReferenceExecutor(model.config, Changed(model.weights, rounded))
    found = ReferenceExecutor(model.config, model.weights, codec=codec)
    tokens = prompt(CASES[name])
    left = found.prefill(tokens, found.new_cache())
    assert np.array_equal(left, expected.prefill(tokens, expected.new_cache()))
    plain = ReferenceExecutor(model.config, model.weights)
    assert np.array_equal(left, plain.prefill(tokens, plain.new_cache())) == (codec == "f32")


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("f16", 1e-6, 1e-2), ("bf16", 1e-5, 5e-2), ("int8", 1e-5, 5e-2)]
)
def test_kv_dtypes_change_little_but_something(
    kind: KvDtype, low: float, high: float, llama: ReferenceExecutor, tiny_folder: Folder
) -> None:
    model = open_model(tiny_folder("llama"))
    executor = ReferenceExecutor(model.config, model.weights, kv_dtype=kind)
    found = executor.prefill(TOKENS, executor.new_cache(), all_logits=True)
    assert low < relative_error(found, llama.prefill(TOKENS, llama.new_cache(), all_logits=True)) < high


@pytest.mark.parametrize("kind", KV_DTYPES)
def test_rounding_of_cached_values(kind: KvDtype) -> None:
    values = np.random.default_rng(0).standard_normal((3, 2, 5)).astype(np.float32)
    values[1, 1] = 0
    found = round_kv(kind, values)
    assert np.array_equal(found, round_kv(kind, found))
    if kind == "int8":
        for t in range(3):
            for head in range(2):
                x = values[t, head]
                scale = np.abs(x).max() / np.float32(127)
                codes = np.rint(x / scale) if scale else 0 * x
                assert np.array_equal(found[t, head], scale * codes)
    else:
        limit = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8}[kind]
        assert np.all(np.abs(found - values) <= limit * np.abs(values))


def test_a_head_bias_is_added(llama: ReferenceExecutor, tiny_folder: Folder) -> None:
    model = open_model(tiny_folder("llama"))
    bias = np.arange(97, dtype=np.float32)
    config = dataclasses.replace(model.config, biases=("head",))
    executor = ReferenceExecutor(config, Changed(model.weights, {"head.bias": bias}))
    expected = llama.prefill(TOKENS, llama.new_cache()) + bias
    assert np.array_equal(executor.prefill(TOKENS, executor.new_cache()), expected)
