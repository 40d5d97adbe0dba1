"""The native engine equals the reference executor: every family, codec, KV type, instruction set and path."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavu import _core
from dejavu.codecs import CODECS
from dejavu.engine import NativeExecutor
from dejavu.engine.packed import pack_in_memory
from dejavu.errors import InputError
from dejavu.executor import KV_DTYPES
from dejavu.models.loading import open_model
from dejavu.reference import ReferenceExecutor
from tiny_models import CASES, prompt, relative_error
from tolerances import TOLERANCES, prefill_tolerance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Folder = Callable[[str], Path]

FAMILIES = list(CASES)
ISAS = _core.isas()


def pair(
    folder: Path, codec: str = "f32", kv: str = "f32", threads: int = 2
) -> tuple[NativeExecutor, ReferenceExecutor]:
    model = open_model(folder)
    packed = pack_in_memory(model.config, model.weights, codec, 1)
    native = NativeExecutor(packed, kv_dtype=kv, threads=threads)
    return native, ReferenceExecutor(model.config, model.weights, codec=codec, kv_dtype=kv)


def by_decoding(executor: object, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    cache = executor.new_cache()
    return np.concatenate([executor.decode(tokens[i : i + 1], [cache]) for i in range(len(tokens))])


@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_equals_the_reference(name: str, tiny_folder: Folder) -> None:
    native, reference = pair(tiny_folder(name))
    tokens = prompt(CASES[name])
    found, expected = by_decoding(native, tokens), by_decoding(reference, tokens)
    assert relative_error(found, expected) <= TOLERANCES["native_f32"]


@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_equals_the_reference(name: str, tiny_folder: Folder) -> None:
    native, reference = pair(tiny_folder(name))
    tokens = prompt(CASES[name])
    expected = reference.prefill(tokens, reference.new_cache(), all_logits=True)
    found = native.prefill(tokens, native.new_cache(), all_logits=True)
    assert relative_error(found, expected) <= TOLERANCES["native_f32"]
    last = native.prefill(tokens, native.new_cache())
    assert relative_error(last, expected[-1:]) <= TOLERANCES["native_f32"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "name", ["llama-head-dim", "llama-blocks", "llama-tail", "opt-350m", "bloom", "gemma3"]
)
def test_codecs_on_every_instruction_set(
    isa: str, codec: str, name: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEJAVU_ISA", isa)
    native, reference = pair(tiny_folder(name), codec)
    assert native.isa == isa
    tokens = prompt(CASES[name])
    expected = reference.prefill(tokens, reference.new_cache(), all_logits=True)
    assert relative_error(by_decoding(native, tokens), expected) <= TOLERANCES[f"native_{codec}"]
    found = native.prefill(tokens, native.new_cache(), all_logits=True)
    assert relative_error(found, expected) <= prefill_tolerance(codec, isa)


def typical(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The median over tokens of the largest difference: one number rounded to the other side moves a few tokens far."""
    return float(np.median(np.abs(found - expected).max(axis=1)))


@pytest.mark.parametrize("kv", KV_DTYPES)
@pytest.mark.parametrize("name", ["llama-head-dim", "mistral-window"])
def test_kv_types(kv: str, name: str, tiny_folder: Folder) -> None:
    native, reference = pair(tiny_folder(name), kv=kv)
    tokens = prompt(CASES[name])
    expected = by_decoding(reference, tokens)
    decoded = by_decoding(native, tokens)
    found = native.prefill(tokens, native.new_cache(), all_logits=True)
    for logits in (decoded, found):
        assert relative_error(logits, expected) <= TOLERANCES[f"native_kv_{kv}"]
    if kv != "f32":  # it is this type and not another that both have
        exact = by_decoding(pair(tiny_folder(name))[1], tokens)
        for logits in (decoded, found):
            assert 3 * typical(logits, expected) < typical(exact, expected)


def test_caches_take_the_bytes_of_their_type(tiny_folder: Folder) -> None:
    taken = {}
    for kv in KV_DTYPES:
        native, _ = pair(tiny_folder("llama-head-dim"), kv=kv)
        cache = native.new_cache()
        native.prefill(prompt(CASES["llama-head-dim"]), cache)
        taken[kv] = cache.nbytes
    assert taken["f32"] == 2 * taken["f16"] == 2 * taken["bf16"]
    assert taken["f16"] / 2 < taken["int8"] < taken["f16"]  # int8 has a scale for each of them


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(threads: int, tiny_folder: Folder) -> None:
    name = "llama-head-dim"
    native, reference = pair(tiny_folder(name), "int8", threads=threads)
    tokens = prompt(CASES[name])
    assert (
        relative_error(by_decoding(native, tokens), by_decoding(reference, tokens))
        <= TOLERANCES["native_int8"]
    )


@pytest.mark.parametrize("name", ["llama-head-dim", "mistral-window", "bloom", "neox"])
def test_batched_decoding_and_chunked_prefill(name: str, tiny_folder: Folder) -> None:
    """Sequences of different lengths in one batch, prompts in pieces: the same logits as alone and at once."""
    native, _ = pair(tiny_folder(name))
    random = np.random.default_rng(5)
    vocab = CASES[name].vocab_size
    prompts = [random.integers(0, vocab, n).astype(np.int32) for n in (1, 5, 19, 2, 33)]
    alone, together = [], [native.new_cache() for _ in prompts]
    for tokens, cache in zip(prompts, together, strict=True):
        alone.append(by_decoding(native, np.append(tokens, np.int32(3)))[-1])
        for start in range(0, len(tokens), 7):
            native.prefill(tokens[start : start + 7], cache)
        assert cache.length == len(tokens)
    found = native.decode(np.full(len(prompts), 3, np.int32), together)
    assert relative_error(found, np.stack(alone)) <= TOLERANCES["native_f32"]


def test_long_sequences_cross_cache_blocks(tiny_folder: Folder) -> None:
    name = "llama-long"
    native, reference = pair(tiny_folder(name))
    tokens = prompt(CASES[name])
    expected = reference.prefill(tokens, reference.new_cache(), all_logits=True)
    assert relative_error(by_decoding(native, tokens), expected) <= TOLERANCES["native_f32"]
    found = native.prefill(tokens, native.new_cache(), all_logits=True)
    assert relative_error(found, expected) <= TOLERANCES["native_f32"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", ["f32", "bf16"])
def test_a_prompt_much_longer_than_its_window(
    codec: str, isa: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys before the window are not multiplied, in whole panels of the product, which are up to 48 wide."""
    monkeypatch.setenv("DEJAVU_ISA", isa)
    model = open_model(tiny_folder("mistral-window"))
    config = dataclasses.replace(model.config, max_context=400)
    native = NativeExecutor(pack_in_memory(config, model.weights, codec, 1), kv_dtype="f32", threads=2)
    reference = ReferenceExecutor(config, model.weights, codec=codec, kv_dtype="f32")
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, 300).astype(np.int32)
    expected = reference.prefill(tokens, reference.new_cache(), all_logits=True)
    cache = native.new_cache()
    found = [native.prefill(part, cache, all_logits=True) for part in (tokens[:170], tokens[170:])]
    assert relative_error(np.concatenate(found), expected) <= prefill_tolerance(codec, isa)


@pytest.mark.parametrize("codec", CODECS)
def test_two_prompts_share_the_head(codec: str, tiny_folder: Folder) -> None:
    native, _ = pair(tiny_folder("llama-head-dim"), codec)
    tokens = prompt(CASES["llama-head-dim"])
    parts = [tokens[:5], tokens[5:]]
    alone = np.concatenate([native.prefill(part, native.new_cache()) for part in parts])
    found = native.prefill_batch(parts, [native.new_cache() for _ in parts])
    assert relative_error(found, alone) <= TOLERANCES["native_f32"]


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("kv", KV_DTYPES)
@pytest.mark.parametrize("name", ["llama-long", "mistral-window", "bloom", "gemma2", "opt-350m"])
def test_threads_share_out_positions(name: str, kv: str, threads: int, tiny_folder: Folder) -> None:
    native, reference = pair(tiny_folder(name), kv=kv, threads=threads)
    native._engine.barrier_cost = -1
    tokens = prompt(CASES[name])
    expected = reference.prefill(tokens, reference.new_cache(), all_logits=True)
    assert relative_error(by_decoding(native, tokens), expected) <= TOLERANCES[f"native_kv_{kv}"]


def test_positions_are_shared_out_where_heads_do_not_come_out_even(tiny_folder: Folder) -> None:
    """Behind a short context, of more than one tile, threads share out heads; behind a longer one positions."""
    engine, by_positions, by_heads = (pair(tiny_folder("opt-350m"))[0] for _ in range(3))
    costs = 600, -1, 1 << 40  # the first: 20 positions of five heads on two threads
    for native, cost in zip((engine, by_positions, by_heads), costs, strict=True):
        native._engine.barrier_cost = cost
    tokens = prompt(CASES["opt-350m"])
    found, positions, heads = (by_decoding(native, tokens) for native in (engine, by_positions, by_heads))
    short = slice(0, 20)
    assert np.array_equal(found[short], heads[short])
    assert not np.array_equal(positions[short], heads[short])
    assert not np.array_equal(found[20:], heads[20:])


def test_truncate_and_fork(tiny_folder: Folder) -> None:
    name = "llama-long"
    native, _ = pair(tiny_folder(name))
    tokens = prompt(CASES[name])
    cache = native.new_cache()
    native.prefill(tokens[:200], cache)
    fork = cache.fork()
    first = native.prefill(tokens[200:230], cache, all_logits=True)
    other = native.prefill(tokens[100:130], fork, all_logits=True)  # must not write into the shared blocks
    cache.truncate(200)
    np.testing.assert_array_equal(native.prefill(tokens[200:230], cache, all_logits=True), first)
    fork.truncate(200)
    np.testing.assert_array_equal(native.prefill(tokens[100:130], fork, all_logits=True), other)
    assert cache.nbytes > 0
    with pytest.raises(ValueError, match="outside"):
        cache.truncate(231)


@pytest.mark.parametrize("which", [0, 1])
def test_both_refuse_the_same_tokens(which: int, tiny_folder: Folder) -> None:
    runs = pair(tiny_folder("llama-head-dim"))[which]
    vocab, context = runs.config.vocab_size, runs.config.max_context
    full = runs.new_cache()
    runs.prefill(np.full(context, 3, np.int32), full)
    one, outside, none = (np.array(ids, np.int32) for ids in ([3], [vocab], []))
    for wrong in (
        lambda: runs.decode(one, [full]),
        lambda: runs.prefill(one, full),
        lambda: runs.prefill(np.full(context + 1, 3, np.int32), runs.new_cache()),
        lambda: runs.prefill(outside, runs.new_cache()),
        lambda: runs.prefill(none, runs.new_cache()),
        lambda: runs.prefill_batch([one, outside], [runs.new_cache(), runs.new_cache()]),
        lambda: runs.prefill_batch([], []),
        lambda: runs.decode(none, []),
        lambda: runs.trace(outside),
        lambda: runs.trace(),
    ):
        with pytest.raises(InputError):
            wrong()


def test_the_same_call_gives_the_same_bits(tiny_folder: Folder) -> None:
    native, _ = pair(tiny_folder("llama-head-dim"), "int4")
    tokens = prompt(CASES["llama-head-dim"])
    np.testing.assert_array_equal(by_decoding(native, tokens), by_decoding(native, tokens))


def test_bad_calls_are_refused(tiny_folder: Folder) -> None:
    native, _ = pair(tiny_folder("llama-head-dim"))
    vocab, context = native.config.vocab_size, native.config.max_context
    cache = native.new_cache()
    for token in (-1, vocab, 2**31 - 1):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            native.decode(np.array([token], np.int32), [cache])
    with pytest.raises(ValueError, match="beyond the context"):
        native.prefill(np.zeros(context + 1, np.int32), cache)
    with pytest.raises(ValueError, match="once"):
        native.decode(np.zeros(2, np.int32), [cache, cache])
    assert cache.length == 0
    out = np.empty((1, vocab), np.float32)
    with pytest.raises(ValueError, match="last, all and none are possible"):
        native._engine.forward(np.zeros(1, np.int32), [cache], [1], False, "lasst", out)
    native.close()
    assert native.packed.buffer.size == 0  # nothing keeps the weights
