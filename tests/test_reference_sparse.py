"""The reference executor under access plans: what is selected, what stands in, what the cache holds."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from changed import Changed
from dejavu.codecs import embed_codec, encode
from dejavu.errors import PlanError
from dejavu.models.loading import open_model
from dejavu.plan import (
    AccessPlan,
    Compensator,
    Dense,
    KvPolicy,
    LayerPlan,
    LowRank,
    Oracle,
    Products,
    Random,
    Sketch,
    Static,
    Threshold,
    VocabularySketch,
)
from dejavu.reference import ReferenceExecutor
from dejavu.reference.ops import layer_norm, rms_norm
from tiny_models import CASES, prompt, relative_error
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Folder = Callable[[str], Path]

FAMILIES = ["llama", "llama-biases", "llama-relu", "qwen3", "gemma2", "opt", "opt-350m", "bloom", "neox"]
SAME = TOLERANCES["chunked_vs_whole"]


def load(folder: Path, codec: Any = "f32", changed: dict[str, Array] | None = None, **config: Any) -> Any:
    model = open_model(folder)
    weights = Changed(model.weights, changed or {})
    return ReferenceExecutor(dataclasses.replace(model.config, **config), weights, codec=codec)


def masked(executor: Any, tokens: Any) -> Array:
    """Logits [t, V] of one masked pass."""
    return executor.prefill(tokens, executor.new_cache(), all_logits=True, sparse=True)


def by_decoding(executor: Any, tokens: Any, cache: Any = None) -> Array:
    cache = cache or executor.new_cache()
    return np.concatenate([executor.decode(tokens[i : i + 1], [cache]) for i in range(len(tokens))])


def each_after_the_others(executor: Any, tokens: Any) -> Array:
    """Logits [t, V] of decoding each token on the cache that a masked pass left of the tokens before it."""
    whole = executor.new_cache()
    executor.prefill(tokens, whole, sparse=True)
    logits = []
    for t in range(len(tokens)):
        cache = whole.fork()
        cache.truncate(t)
        logits.append(executor.decode(tokens[t : t + 1], [cache]))
    return np.concatenate(logits)


def same_but_for_ties(found: Array, expected: Array) -> bool:
    """Whether nearly all tokens agree: one whose k-th and next score differ by rounding alone may pick another."""
    errors = np.array([relative_error(a, b) for a, b in zip(found, expected, strict=True)])
    return bool(np.mean(errors <= SAME) >= 0.9 and errors.max() < 0.2)


def dense(executor: Any, tokens: Any) -> Array:
    return executor.prefill(tokens, executor.new_cache(), all_logits=True)


def low_rank(n: int, d: int, seed: int = 0, **options: Any) -> LowRank:
    random = np.random.default_rng(seed)
    return LowRank(
        a=random.standard_normal((7, d)),
        b=random.standard_normal((n, 7)),
        bias=random.standard_normal(n),
        **options,
    )


def products(config: Any, **options: Any) -> Products:
    random, n = np.random.default_rng(1), config.base_neurons * (2 if config.gated else 1)
    return Products(
        a=random.standard_normal((7, config.d_model)) / 5,
        b=random.standard_normal((n, 7)),
        bias=random.standard_normal(n),
        spread=random.random(n),
        **options,
    )


def compensator(d: int) -> Compensator:
    random = np.random.default_rng(3)
    a, b = random.standard_normal((2, 3, d)) / 10
    return Compensator(a=a, b=b.T, bias=random.standard_normal(d) / 10)


def plans(executor: Any, density: float | None = 0.4, **rule: Any) -> dict[str, AccessPlan]:
    """A plan per kind of selector."""
    c = executor.config
    rule = rule or {"density": density}
    n, h, d = c.base_neurons, c.n_heads, c.d_model
    few = 4 if executor.codec == "int4" else 3

    def uniform(neurons: Any = None, heads: Any = None) -> AccessPlan:
        return AccessPlan.uniform(executor.fingerprint, c.n_layers, neurons=neurons, heads=heads)

    return {
        "random": uniform(Random(seed=5, **rule), Random(seed=6, **rule)),
        "oracle": uniform(Oracle(**rule), Oracle(**rule)),
        "threshold": uniform(Threshold(**rule)),
        "low_rank": uniform(low_rank(n, d, **rule), low_rank(h, d, **rule)),
        "low_rank-relu-1": uniform(
            low_rank(n, d, hidden="relu", lookahead=1, **rule), low_rank(h, d, lookahead=2, **rule)
        ),
        "products": uniform(products(c, **rule)),
        "products-1": uniform(products(c, lookahead=1, **rule)),
        "sketch": uniform(Sketch(bits=few, **rule)),
        "sketch-1": uniform(Sketch(bits=4, lookahead=1, **rule)),
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_density_one_is_dense(name: str, tiny_folder: Folder) -> None:
    executor, tokens = load(tiny_folder(name), "int8"), prompt(CASES[name])
    expected = dense(executor, tokens)
    for kind, plan in plans(executor, 1.0).items():
        executor.set_plan(plan)
        assert np.array_equal(masked(executor, tokens), expected), kind
        assert executor.last_stats == {"neurons": [1.0] * len(plan.layers), "heads": [1.0] * len(plan.layers)}


@pytest.mark.parametrize("name", FAMILIES)
def test_one_masked_pass_equals_decoding(name: str, tiny_folder: Folder) -> None:
    executor, tokens = load(tiny_folder(name), "int4"), prompt(CASES[name])
    base = dense(executor, tokens)
    for kind, plan in plans(executor).items():
        layers = tuple(
            dataclasses.replace(x, compensator=compensator(executor.config.d_model)) for x in plan.layers
        )
        plan = dataclasses.replace(plan, layers=layers)
        executor.set_plan(plan)
        expected = masked(executor, tokens)
        density = executor.last_stats["neurons"][0]
        assert math.isclose(density, math.ceil(0.4 * executor.config.d_ff) / executor.config.d_ff), kind
        assert same_but_for_ties(each_after_the_others(executor, tokens), expected), kind
        written = by_decoding(executor, tokens)
        executor.set_plan(dataclasses.replace(plan, kv=KvPolicy("recompute", 3)))
        assert same_but_for_ties(by_decoding(executor, tokens), written), kind
        assert relative_error(masked(executor, tokens), expected) == 0, kind
        assert relative_error(expected, base) > 1e-3, kind
        assert np.array_equal(dense(executor, tokens), base), kind  # prefill stays dense


@pytest.mark.parametrize("name", ["llama", "opt", "neox"])
def test_static_selections_leave_out_weights(name: str, tiny_folder: Folder) -> None:
    tokens, config = prompt(CASES[name]), load(tiny_folder(name)).config
    random = np.random.default_rng(1)
    neurons = np.flatnonzero(random.random(config.d_ff) < 0.5)
    heads = np.array([0, config.n_heads - 1])
    weights = open_model(tiny_folder(name)).weights
    changed = {}
    for i in range(config.n_layers):
        down, o = weights.read(f"layers.{i}.down.weight"), weights.read(f"layers.{i}.o.weight")
        gone = np.setdiff1d(np.arange(config.d_ff), neurons)
        down[:, gone] = 0
        by_head = o.reshape(config.d_model, config.n_heads, config.head_dim)
        by_head[:, 1:-1] = 0
        changed |= {f"layers.{i}.down.weight": down, f"layers.{i}.o.weight": o}
    expected = dense(load(tiny_folder(name), changed=changed), tokens)
    executor = load(tiny_folder(name))
    executor.set_plan(
        AccessPlan.uniform(
            executor.fingerprint,
            config.n_layers,
            neurons=Static(indices=neurons),
            heads=Static(indices=heads),
        )
    )
    assert relative_error(masked(executor, tokens), expected) <= SAME
    assert relative_error(by_decoding(executor, tokens), expected) <= SAME


def test_refined_copies_are_always_selected(tiny_folder: Folder) -> None:
    tokens, none = prompt(CASES["llama"]), Static(indices=np.zeros(0, np.int32))
    weights = open_model(tiny_folder("llama")).weights
    changed = {}
    for i in range(2):
        down = weights.read(f"layers.{i}.down.weight")
        down[:, :-4] = 0
        changed[f"layers.{i}.down.weight"] = down
    expected = dense(load(tiny_folder("llama"), changed=changed), tokens)
    executor = load(tiny_folder("llama"), refined=4)
    executor.set_plan(AccessPlan.uniform(executor.fingerprint, 2, neurons=none))
    assert relative_error(masked(executor, tokens), expected) <= SAME
    assert executor.last_stats["neurons"] == [0.0, 0.0]
    assert executor.trace(tokens).hidden.shape == (2, len(tokens), 80)


def brute_pick(scores: list[float], density: float | None, threshold: float | None) -> list[int]:
    if threshold is not None:
        return [i for i, score in enumerate(scores) if score > np.float32(threshold)]
    k = max(1, math.ceil(density * len(scores) - 1e-9))
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


def brute_hash(seed: int, layer: int, position: int, index: int) -> float:
    wrap = (1 << 64) - 1
    z = ((seed ^ (layer << 48) ^ (position << 24) ^ index) + 0x9E3779B97F4A7C15) & wrap
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & wrap
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & wrap
    return ((z ^ (z >> 31)) >> 40) / 2**24


def brute_leading(codec: Any, rows: Array, bits: int) -> Array:
    encoded = encode(codec, rows)
    left = {"int8": 8, "int4": 4}[codec] - bits
    codes = encoded.codes.astype(np.int64) + (128 if codec == "int8" else 0)
    middle = ((codes >> left) << left) + 2**left // 2 - (128 if codec == "int8" else 0)
    values = middle * np.repeat(encoded.scales.astype(np.float64), 32, axis=1)
    if encoded.mins is not None:
        values += np.repeat(encoded.mins.astype(np.float64), 32, axis=1)
    return values[:, : rows.shape[1]]


class Brute:
    """Scores of the last layer, token by token, from a dense trace."""

    def __init__(self, folder: Path, codec: Any) -> None:
        self.executor = load(folder, codec)
        self.model = open_model(folder)
        self.codec = codec
        self.c = self.executor.config
        self.last = self.c.n_layers - 1

    def weight(self, name: str) -> Array:
        return self.model.weights.read(f"layers.{self.last}.{name}")

    def input(self, block: str, trace: Any, lookahead: int, t: int) -> Array:
        x = {"attn": trace.attn_input, "mlp": trace.mlp_input}[block][max(self.last - lookahead, 0), t]
        if not self.c.pre_norm:
            return x
        if self.c.norm == "rms":
            return rms_norm(x, self.weight(f"{block}_norm.weight"), self.c.norm_eps)
        return layer_norm(
            x, self.weight(f"{block}_norm.weight"), self.weight(f"{block}_norm.bias"), self.c.norm_eps
        )

    def linear(self, name: str, y: Array, bits: int) -> Array:
        out = brute_leading(self.codec, self.weight(f"{name}.weight"), bits) @ y
        return out + self.weight(f"{name}.bias") if name in self.c.biases else out

    def scores(self, selector: Any, block: str, trace: Any, t: int) -> list[float]:
        n = self.c.d_ff if block == "mlp" else self.c.n_heads
        if isinstance(selector, Random):
            layer = self.last + (32768 if block == "attn" else 0)
            return [brute_hash(selector.seed, layer, t, j) for j in range(n)]
        if isinstance(selector, Oracle):
            return list(np.abs(trace.hidden if block == "mlp" else trace.head_norm)[self.last, t])
        if isinstance(selector, Threshold):
            return list(np.abs(trace.gate[self.last, t]))
        y = self.input(block, trace, selector.lookahead, t)
        if isinstance(selector, LowRank):
            h = selector.a @ y
            return list((np.maximum(h, 0) if selector.hidden == "relu" else h) @ selector.b.T + selector.bias)
        act = {
            "relu": lambda x: np.maximum(x, 0),
            "silu": lambda x: x / (1 + np.exp(-x)),
            "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        }[self.c.activation]
        if isinstance(selector, Products):
            z = selector.b @ (selector.a @ y) + selector.bias
            found = []
            for j in range(n):
                g, s = float(z[j]), float(selector.spread[j])
                square = (act(g + s) ** 2 + act(g - s) ** 2) / 2
                if self.c.gated:
                    u, s = float(z[n + j]), float(selector.spread[n + j])
                    square *= u**2 + s**2
                found.append(float(square))
            return found
        u = self.linear("up", y, selector.bits)
        if self.c.gated:
            return list(np.abs(act(self.linear("gate", y, selector.bits)) * u))
        return list(u if self.c.activation == "relu" else np.abs(act(u)))


@pytest.mark.parametrize("rule", [{"density": 0.3}, {"threshold": 0.2}])
@pytest.mark.parametrize("name", ["llama", "llama-biases", "llama-relu", "opt", "opt-350m", "bloom"])
def test_selectors_pick_what_their_definition_says(name: str, rule: Any, tiny_folder: Folder) -> None:
    """Every token of a masked pass equals one with a static selection found by brute force, in the last layer."""
    codec = "int4" if name == "llama" else "int8"
    brute = Brute(tiny_folder(name), codec)
    executor, c = brute.executor, brute.c
    tokens = prompt(CASES[name])[:9]
    trace = executor.trace(tokens)
    others = (LayerPlan(),) * brute.last
    for kind, plan in plans(executor, **rule).items():
        layer = plan.layers[-1]
        for block, selector in (("mlp", layer.neurons), ("attn", layer.heads)):
            if isinstance(selector, Dense):
                continue
            parts = {"mlp": LayerPlan, "attn": lambda s: LayerPlan(heads=s)}[block]
            executor.set_plan(dataclasses.replace(plan, layers=(*others, parts(selector))))
            found = masked(executor, tokens)
            density = executor.last_stats["neurons" if block == "mlp" else "heads"][-1]
            sizes = []
            for t in range(len(tokens)):
                indices = brute_pick(
                    brute.scores(selector, block, trace, t), **({"density": None, "threshold": None} | rule)
                )
                sizes.append(len(indices))
                static = parts(Static(indices=np.array(indices, np.int32)))
                executor.set_plan(dataclasses.replace(plan, layers=(*others, static)))
                expected = masked(executor, tokens)[t]
                assert relative_error(found[t], expected) <= SAME, (kind, block, t)
            n = c.d_ff if block == "mlp" else c.n_heads
            assert math.isclose(density, float(np.mean(sizes)) / n, rel_tol=1e-6), (kind, block)


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=40),
    density=st.floats(0.01, 1),
    threshold=st.sampled_from([-2.0, 0.0, 0.5, 9.0]),
)
def test_ties_go_to_the_lower_index(scores: list[float], density: float, threshold: float) -> None:
    from dejavu.reference.selection import pick

    row = np.array([scores], np.float32)
    for rule in ({"density": density, "threshold": None}, {"density": None, "threshold": threshold}):
        found = np.flatnonzero(pick(row, Oracle(**rule))[0]).tolist()
        assert found == brute_pick([x + 0.0 for x in scores], **rule)


def test_the_compensator_is_added(tiny_folder: Folder) -> None:
    """With no neuron selected, the MLP is the compensator and the down bias alone."""
    name = "llama-biases"
    executor, tokens = load(tiny_folder(name)), prompt(CASES[name])
    last, c = executor.config.n_layers - 1, executor.config
    stand_in = compensator(c.d_model)
    layer = LayerPlan(Static(indices=np.zeros(0, np.int32)), Dense(), stand_in)
    executor.set_plan(AccessPlan(model=executor.fingerprint, layers=(LayerPlan(),) * last + (layer,)))
    x = executor.trace(tokens).mlp_input[last]
    read = open_model(tiny_folder(name)).weights.read
    y = rms_norm(x, read(f"layers.{last}.mlp_norm.weight"), c.norm_eps)
    out = x + read(f"layers.{last}.down.bias") + stand_in.bias + (y @ stand_in.a.T) @ stand_in.b.T
    expected = rms_norm(out, read("final_norm.weight"), c.norm_eps) @ read("head.weight").T
    assert relative_error(masked(executor, tokens), expected) <= SAME


@pytest.mark.parametrize("buffer", [1, 7, 64])
@pytest.mark.parametrize("name", ["llama-long", "neox", "bloom", "rope-dynamic", "gemma2"])
def test_recomputed_keys_and_values_equal_written_ones(name: str, buffer: int, tiny_folder: Folder) -> None:
    """Random head patterns, few enough that groups wait for long."""
    executor = load(tiny_folder(name), max_context=600)
    c = executor.config
    length = 512 if name == "llama-long" else 90
    tokens = np.random.default_rng(2).integers(0, c.vocab_size, length).astype(np.int32)
    written, late = executor.new_cache(), executor.new_cache()
    plan = AccessPlan.uniform(executor.fingerprint, c.n_layers, heads=Random(threshold=0.98))
    executor.set_plan(plan)
    expected = by_decoding(executor, tokens, written)
    executor.set_plan(dataclasses.replace(plan, kv=KvPolicy("recompute", buffer)))
    waited = 0
    for t in range(length):
        found = executor.decode(tokens[t : t + 1], [late])
        assert relative_error(found[0], expected[t]) <= SAME
        waits = [late.length - late.filled(i) for i in range(c.n_layers)]
        assert np.max(waits) < buffer
        waited = max(waited, np.max(waits))
    assert waited == min(buffer, length) - 1 or (buffer == 64 and waited > 20)
    executor.set_plan(None)  # a dense step needs them all
    executor.prefill(tokens[:3], late)
    executor.prefill(tokens[:3], written)
    for i in range(c.n_layers):
        for a, b in zip(late.get(i, length), written.get(i, length), strict=True):
            assert relative_error(a, b) <= SAME


def test_missing_positions_survive_fork_and_truncate(tiny_folder: Folder) -> None:
    executor, tokens = load(tiny_folder("llama")), prompt(CASES["llama"])
    plan = AccessPlan.uniform(
        executor.fingerprint, 2, heads=Static(indices=np.array([0], np.int32)), kv=KvPolicy("recompute", 64)
    )
    executor.set_plan(plan)
    cache = executor.new_cache()
    executor.prefill(tokens[:5], cache)
    by_decoding(executor, tokens[5:20], cache)
    assert cache.filled(0).tolist() == [20, 5]
    fork = cache.fork()
    fork.truncate(11)
    assert fork.filled(1).tolist() == [11, 5]
    executor.prefill(tokens[20:22], cache)
    found = executor.prefill(tokens[30:33], fork)
    executor.set_plan(dataclasses.replace(plan, kv=KvPolicy("write")))
    other = executor.new_cache()
    executor.prefill(tokens[:5], other)
    by_decoding(executor, tokens[5:11], other)
    assert relative_error(found, executor.prefill(tokens[30:33], other)) <= SAME
    fork.truncate(3)
    assert fork.filled(0).tolist() == [3, 3]


def test_batched_decode_equals_single(tiny_folder: Folder) -> None:
    executor, tokens = load(tiny_folder("llama")), prompt(CASES["llama"])
    plan = plans(executor)["low_rank"]
    executor.set_plan(dataclasses.replace(plan, kv=KvPolicy("recompute")))
    caches = [executor.new_cache() for _ in range(3)]
    for n, cache in enumerate(caches):
        executor.prefill(tokens[: 3 + 5 * n], cache)
    single = [executor.decode(tokens[n : n + 1], [cache.fork()]) for n, cache in enumerate(caches)]
    assert np.array_equal(executor.decode(tokens[:3], caches), np.concatenate(single))


@pytest.mark.parametrize("name", ["llama", "llama-biases", "opt-350m", "gemma2"])
def test_vocabulary_sketch(name: str, tiny_folder: Folder) -> None:
    executor, tokens = load(tiny_folder(name), "int8"), prompt(CASES[name])
    exact = dense(executor, tokens)

    def under(**options: Any) -> Array:
        sketch = VocabularySketch(**options)
        executor.set_plan(
            AccessPlan.uniform(executor.fingerprint, executor.config.n_layers, vocabulary=sketch)
        )
        return masked(executor, tokens)

    assert np.array_equal(under(bits=3, exact=10**6), exact)
    few = under(bits=3, exact=4)
    assert ((few == exact).sum(axis=1) >= 4).all()
    assert not np.array_equal(few, exact)
    head = open_model(tiny_folder(name)).weights.read(
        "embed.weight" if executor.config.tied_head else "head.weight"
    )
    approximate = brute_leading(embed_codec("int8"), head, 4)
    assert np.abs(under(bits=4, exact=1) - exact).max() <= np.abs(approximate - head).sum(axis=1).max() * 9
    # What all tokens have in common is exact: estimated is what differs from it.
    x = executor.trace(tokens).head_input
    centred = under(bits=4, exact=1, mean=x[3])
    assert relative_error(centred[3], exact[3]) <= SAME
    assert not np.array_equal(centred[4], exact[4])
    # So is nearly all along directions whose missing parts are known.
    apart, missing = (x[5] - x[3])[None], (head - approximate) @ (x[5] - x[3])[:, None]
    length = np.float32(np.linalg.norm(apart))
    along = under(bits=4, exact=1, mean=x[3], directions=apart / length, missing=missing / length)
    assert relative_error(along[5], exact[5]) <= 0.15 * relative_error(centred[5], exact[5])


def test_traces_tell_what_the_dense_model_does(tiny_folder: Folder) -> None:
    executor, tokens = load(tiny_folder("llama")), prompt(CASES["llama"])
    trace = executor.trace(tokens)
    read = open_model(tiny_folder("llama")).weights.read
    np.testing.assert_array_equal(trace.logits, dense(executor, tokens))
    np.testing.assert_array_equal(trace.attn_input[0], read("embed.weight")[tokens])
    after = trace.mlp_input[0] + trace.hidden[0] @ read("layers.0.down.weight").T
    assert relative_error(after, trace.attn_input[1]) <= SAME
    assert trace.head_norm.shape == (2, len(tokens), 6)
    few = executor.trace(tokens, want=("gate",))
    np.testing.assert_array_equal(few.gate, trace.gate)
    assert few.hidden.shape == (2, 0, 84)
    assert few.logits.shape == (0, 97)
    assert few.head_input.shape == (0, executor.config.embed_dim)
    assert relative_error(trace.head_input @ read("embed.weight").T, trace.logits) <= SAME


def test_plans_that_do_not_fit_are_refused(tiny_folder: Folder) -> None:
    executor = load(tiny_folder("llama"))
    with pytest.raises(PlanError, match="is for model other"):
        executor.set_plan(AccessPlan.uniform("other", 2))
    with pytest.raises(PlanError, match="--codec int8"):
        executor.set_plan(AccessPlan.uniform(executor.fingerprint, 2, neurons=Sketch(bits=3, density=0.5)))
    with pytest.raises(PlanError, match="--codec int8"):
        executor.set_plan(
            AccessPlan.uniform(executor.fingerprint, 2, vocabulary=VocabularySketch(bits=3, exact=5))
        )
    assert executor.last_stats == {}
