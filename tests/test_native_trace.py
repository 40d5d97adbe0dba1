"""What the native engine hands out of a pass equals what the reference computes there."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.codecs import CODECS
from dejavu.engine import NativeExecutor
from dejavu.engine.packed import pack_in_memory
from dejavu.errors import InputError
from dejavu.executor import TRACE_FIELDS
from dejavu.models.loading import open_model
from dejavu.plan import (
    AccessPlan,
    Dense,
    LayerPlan,
    LowRank,
    Oracle,
    Random,
    Sketch,
    Static,
    Threshold,
    VocabularySketch,
)
from dejavu.recall import recall
from dejavu.reference import ReferenceExecutor
from tiny_models import CASES, prompt, relative_error
from tolerances import TOLERANCES, prefill_tolerance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dejavu.executor import Trace

    Folder = Callable[[str], Path]


def pair(folder: Path, codec: str) -> tuple[NativeExecutor, ReferenceExecutor]:
    model = open_model(folder)
    packed = pack_in_memory(model.config, model.weights, codec, 1)
    native = NativeExecutor(packed, kv_dtype="f32", threads=2)
    return native, ReferenceExecutor(model.config, model.weights, codec=codec)


@pytest.mark.parametrize(
    "name", ["llama-biases", "qwen3", "gemma2", "opt", "opt-350m", "bloom", "neox", "llama-relu"]
)
def test_trace_equals_the_reference(name: str, tiny_folder: Folder) -> None:
    native, reference = pair(tiny_folder(name), "f32")
    tokens = prompt(CASES[name])
    found, expected = native.trace(tokens), reference.trace(tokens)
    for field in TRACE_FIELDS:
        assert relative_error(getattr(found, field), getattr(expected, field)) <= TOLERANCES["native_f32"], (
            field
        )


@pytest.mark.parametrize("codec", CODECS)
def test_trace_of_every_codec(codec: str, tiny_folder: Folder) -> None:
    name = "llama-head-dim"
    native, reference = pair(tiny_folder(name), codec)
    tokens = prompt(CASES[name])
    found, expected = native.trace(tokens), reference.trace(tokens)
    for field in TRACE_FIELDS:
        error = relative_error(getattr(found, field), getattr(expected, field))
        assert error <= prefill_tolerance(codec, native.isa), field


@pytest.mark.parametrize("name", ["llama-biases", "opt", "bloom"])
def test_several_sequences_are_traced_one_after_the_other(name: str, tiny_folder: Folder) -> None:
    native, reference = pair(tiny_folder(name), "f32")
    tokens = prompt(CASES[name])
    sequences = tokens[:5], tokens[5:6], tokens[2:]
    for executor in (native, reference):
        found, alone = executor.trace(*sequences), [executor.trace(sequence) for sequence in sequences]
        for field in TRACE_FIELDS:
            axis = 0 if field in ("head_input", "logits") else 1
            expected = np.concatenate([getattr(trace, field) for trace in alone], axis=axis)
            assert relative_error(getattr(found, field), expected) <= TOLERANCES["native_f32"], field
        with pytest.raises(InputError, match="no tokens"):
            executor.trace()


def test_only_what_is_wanted(tiny_folder: Folder) -> None:
    native, _ = pair(tiny_folder("llama"), "f32")
    tokens = prompt(CASES["llama"])
    everything = native.trace(tokens)
    for field in TRACE_FIELDS:
        found = native.trace(tokens, want=[field])
        np.testing.assert_array_equal(getattr(found, field), getattr(everything, field))
        assert [name for name in TRACE_FIELDS if getattr(found, name).size] == [field]
    one = native.trace(tokens[:1])
    assert one.hidden.shape == (2, 1, 84)


def test_arrays_that_do_not_fit_are_refused(tiny_folder: Folder) -> None:
    native, _ = pair(tiny_folder("llama"), "f32")
    tokens, widths = (
        np.zeros(3, np.int32),
        {"attn_input": 60, "mlp_input": 60, "gate": 84, "hidden": 84, "chosen": 84},
    )
    fitting = {name: np.empty((2, 3, width), np.float32) for name, width in widths.items()}
    fitting["head_norm"] = np.empty((2, 0, 6), np.float32)
    fitting["head_input"] = np.empty((1, 3, 60), np.float32)
    logits = np.empty((3, 97), np.float32)
    native._engine.trace(tokens, [native.new_cache()], [3], fitting, logits, False)
    for arrays in (
        {"hidden": np.empty((2, 3, 83), np.float32)},
        {"hidden": np.empty((2, 4, 84), np.float32)},
        {"hidden": np.empty((2, 3, 84), np.float64)},
        {"hidden": np.empty((2, 3, 168), np.float32)[:, :, ::2]},
        {"head_norm": None},
        {"head_input": np.empty((2, 3, 60), np.float32)},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(arrays))} is not float32"):
            native._engine.trace(tokens, [native.new_cache()], [3], fitting | arrays, logits, False)
    with pytest.raises(ValueError, match="is not float32"):
        native._engine.trace(tokens, [native.new_cache()], [3], {}, logits, False)
    with pytest.raises(ValueError, match="logits is not"):
        native._engine.trace(tokens, [native.new_cache()], [3], fitting, logits[:2], False)
    with pytest.raises(ValueError, match="counts do not add up"):
        native._engine.trace(tokens, [native.new_cache()], [2], fitting, logits, False)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        native.trace(np.array([97], np.int32))


@pytest.mark.parametrize("name", ["llama-biases", "opt"])
def test_what_a_plan_chooses(name: str, tiny_folder: Folder) -> None:
    native, reference = pair(tiny_folder(name), "f32")
    tokens = prompt(CASES[name])
    with pytest.raises(InputError, match="no plan"):
        native.trace(tokens, want=("chosen",))
    c, model = native.config, native.packed.fingerprint
    plan = AccessPlan.uniform(model, c.n_layers, neurons=Threshold(density=0.4))
    for executor in (native, reference):
        executor.set_plan(plan)
    want = ("hidden", "chosen")
    found, expected = native.trace(tokens, want=want), reference.trace(tokens, want=want)
    assert relative_error(found.hidden, expected.hidden) <= TOLERANCES["native_f32"]
    np.testing.assert_array_equal(found.chosen, expected.chosen)
    assert found.chosen.mean() == pytest.approx(0.4, abs=0.02)
    assert native.trace(tokens).chosen.size == reference.trace(tokens).chosen.size == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_norms_of_heads_are_of_all_heads_under_a_plan_too(threads: int, tiny_folder: Folder) -> None:
    model = open_model(tiny_folder("llama-head-dim"))
    packed = pack_in_memory(model.config, model.weights, "f32", 1)
    native = NativeExecutor(packed, kv_dtype="f32", threads=threads)
    reference = ReferenceExecutor(model.config, model.weights, codec="f32", kv_dtype="f32")
    c = native.config
    heads = Static(indices=np.array([1], np.int32))
    plan = AccessPlan.uniform(packed.fingerprint, c.n_layers, heads=heads)
    tokens = np.random.default_rng(0).integers(0, c.vocab_size, 30).astype(np.int32)
    found = []
    for executor in (native, reference):
        executor.set_plan(plan)
        found.append(executor.trace(tokens, want=("head_norm", "chosen")).head_norm)
    assert relative_error(*found) <= TOLERANCES["native_f32"]
    assert (found[0] > 0).all()


def test_recall_of_plans(tiny_folder: Folder) -> None:
    native, reference = pair(tiny_folder("llama-head-dim"), "f32")
    tokens = prompt(CASES["llama-head-dim"])
    c, model = native.config, native.packed.fingerprint
    for executor in (native, reference):
        found = {}
        for selector in (Oracle(density=0.3), Random(density=0.3), Dense()):
            executor.set_plan(AccessPlan.uniform(model, c.n_layers, neurons=selector))
            found[selector.kind] = recall(executor, tokens)
        assert found["oracle"] == found["dense"] == [1.0] * c.n_layers
        assert found["random"] == pytest.approx([0.3] * c.n_layers, abs=0.06)
    executor.set_plan(AccessPlan.uniform(model, c.n_layers, neurons=Threshold(density=0.3)))
    trace = executor.trace(tokens, want=("hidden", "chosen"))
    layer, token = 1, 5
    chosen = set(np.flatnonzero(trace.chosen[layer, token]))
    best = set(np.argsort(-np.abs(trace.hidden[layer, token]), kind="stable")[: len(chosen)])
    one = recall(Slice(trace, token), tokens)[layer]  # type: ignore[arg-type]
    assert one == len(chosen & best) / len(best)


def test_recall_counts_no_zeros() -> None:
    hidden, chosen = np.zeros((2, 1, 12), np.float32), np.zeros((2, 1, 12), np.float32)
    hidden[0, 0, 9:] = 1
    chosen[:, 0, 6:] = 1  # six, where three are not zero, or none
    trace = SimpleNamespace(hidden=hidden, chosen=chosen)
    executor: Any = SimpleNamespace(trace=lambda tokens, want: trace)
    assert recall(executor, np.zeros(1, np.int32)) == [1, 1]
    chosen[0, 0, 11] = 0
    assert recall(executor, np.zeros(1, np.int32))[0] == pytest.approx(2 / 3)


class Slice:
    """An executor whose traces are one token of another's."""

    def __init__(self, trace: Trace, token: int) -> None:
        parts = {name: getattr(trace, name)[:, token : token + 1] for name in ("hidden", "chosen")}
        self._trace = dataclasses.replace(trace, **parts)

    def trace(self, tokens: np.ndarray, want: tuple[str, ...]) -> Trace:
        return self._trace


@pytest.mark.parametrize("leading", [0, 3, 4, 5])
def test_bytes_that_a_plan_touches(leading: int, tiny_folder: Folder) -> None:
    model = open_model(tiny_folder("llama-head-dim"))
    packed = pack_in_memory(model.config, model.weights, "int8", 1, leading=leading)
    native = NativeExecutor(packed, threads=1)
    c, layers = native.config, native.config.n_layers
    dense = native.touched_bytes(40)
    assert dense == native.dense_bytes(40)
    mlp, attention = dense["mlp"], dense["attention"]
    lead = sum(size for name, (_, size) in packed.places.items() if name.endswith(".lead") and name[0] == "l")
    kv = sum(size for name, (_, size) in packed.places.items() if name.endswith(".kv"))
    zeros = LowRank(a=np.zeros((32, c.d_model)), b=np.zeros((c.d_ff, 32)), bias=np.zeros(c.d_ff), density=0.5)
    half = LayerPlan(zeros, Static(indices=np.arange(0, c.n_heads, 2, dtype=np.int32)))
    native.set_plan(AccessPlan(model=packed.fingerprint, layers=(half,) * layers))
    touched = native.touched_bytes(40)
    assert native.plan_nbytes == touched["predictors"] + layers * 4 * len(half.heads.indices)
    assert touched["mlp"] == round(mlp / 2)
    assert touched["attention"] == (attention - kv) // 2 + kv
    assert touched["predictors"] == layers * (32 * c.d_model * 34 // 32 + -(-c.d_ff // 16) * 320 + 4 * c.d_ff)
    assert touched["head"] == dense["head"]
    assert touched["kv"] == dense["kv"] * min(c.n_heads // c.n_kv_heads, 2) // 2
    native.set_plan(AccessPlan.uniform(packed.fingerprint, layers, neurons=Threshold(threshold=1e30)))
    before = native.touched_bytes(0)
    assert native.plan_nbytes == 0  # gates are among the weights
    assert before["mlp"] + before["predictors"] == mlp  # not known before it ran
    native.decode(np.array([3]), [native.new_cache()])
    after = native.touched_bytes(0)
    assert (after["mlp"], after["predictors"]) == (0, round(mlp / 3))  # the gates
    if leading:
        sketch = AccessPlan.uniform(
            packed.fingerprint,
            layers,
            neurons=Sketch(bits=leading, density=0.5),
            vocabulary=VocabularySketch(bits=min(leading, 4), exact=c.vocab_size),
        )
        native.set_plan(sketch)
        touched = native.touched_bytes(0)
        assert (touched["mlp"], touched["predictors"]) == (round((mlp - lead) / 2), lead)
        leads = -(-c.vocab_size // 16) * -(-16 * -(-c.embed_dim // 32) * (4 * min(leading, 4) + 2) // 64) * 64
        assert native.touched_bytes(0)["head"] == leads + dense["head"]
        assert native.plan_nbytes == leads
        values = Sketch(bits=leading, density=0.5, values="leading")
        native.set_plan(AccessPlan.uniform(packed.fingerprint, layers, neurons=values))
        down = layers * c.d_ff * c.d_model * 8.5 / 8
        assert native.touched_bytes(0)["mlp"] == round(down / 2)
