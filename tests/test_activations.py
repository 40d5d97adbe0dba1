"""Activations with exact zeros: kernels beside float64, the native engine beside the reference, zeros skipped exactly."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu import _core
from dejavu.codecs import CODECS
from dejavu.engine import NativeExecutor
from dejavu.engine.packed import pack_in_memory
from dejavu.errors import UnsupportedModelError
from dejavu.plan import AccessPlan, Dense, LayerPlan, LowRank, Oracle, Products, Sketch, Static, Threshold
from dejavu.reference import ReferenceExecutor, ops
from dejavu.training.labels import active_neurons, label_threshold
from dejavu.training.quantiles import Quantiles
from tiny_gated import GATED, KINDS, configured, random_weights
from tiny_models import relative_error
from tolerances import TOLERANCES, prefill_tolerance

if TYPE_CHECKING:
    from dejavu.models.config import ModelConfig

ISAS = _core.isas()
TOKENS = np.random.default_rng(3).integers(0, GATED.vocab_size, 24).astype(np.int32)


def pair(config: ModelConfig, codec: Any, *, leading: int = 0) -> tuple[NativeExecutor, ReferenceExecutor]:
    weights = random_weights(config)
    packed = pack_in_memory(config, weights, codec, 1, leading=leading)
    return NativeExecutor(packed, kv_dtype="f32", threads=2), ReferenceExecutor(config, weights, codec=codec)


def by_decoding(executor: Any) -> np.ndarray:
    cache = executor.new_cache()
    return np.concatenate([executor.decode(TOKENS[i : i + 1], [cache]) for i in range(len(TOKENS))])


def act(kind: str, x: np.ndarray, threshold: float) -> np.ndarray:
    """The definitions once more, one number at a time."""
    rules = {
        "relu": lambda v: max(v, 0.0),
        "drelu": lambda v: max(v, 0.0),
        "relu2": lambda v: max(v, 0.0) ** 2,
        "fatrelu": lambda v: v if v > threshold else 0.0,
        "shifted_relu": lambda v: max(v - threshold, 0.0),
    }
    return np.array([rules[kind](float(v)) for v in x])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 7, 16, 37])
@pytest.mark.parametrize(
    ("kind", "threshold"),
    [(kind, t) for kind, at in KINDS.items() for t in (0.0, 0.25, -0.5) if at or not t],
)
def test_kernels(isa: str, n: int, kind: str, threshold: float) -> None:
    rng = np.random.default_rng(n)
    x, up = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    x[: min(n, 3)] = [threshold, 0.0, -9.0][: min(n, 3)]  # exactly at the threshold: nothing passes
    expected = act(kind, x, threshold)
    out = np.full(n, np.nan, np.float32)
    _core.activate(isa, kind, x, None, out, threshold)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-7)
    _core.activate(isa, kind, x, up, out, threshold)
    np.testing.assert_allclose(
        out, expected * (np.maximum(up, 0) if kind == "drelu" else up), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_follows_the_definition(kind: str) -> None:
    config = dataclasses.replace(configured(kind), n_layers=1)
    weights = random_weights(config)
    trace = ReferenceExecutor(config, weights).trace(TOKENS)
    x = trace.mlp_input[0].astype(np.float64)  # [t, d]
    t = weights.tensors
    norm = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + config.norm_eps) * t["layers.0.mlp_norm.weight"]
    g, u = (norm @ t[f"layers.0.{p}.weight"].T + t[f"layers.0.{p}.bias"] for p in ("gate", "up"))
    a = act(kind, g.ravel(), config.activation_threshold).reshape(g.shape)
    assert 0.2 < (a == 0).mean() < 0.9
    np.testing.assert_allclose(trace.gate[0], a, atol=1e-4)
    np.testing.assert_allclose(trace.hidden[0], a * (np.maximum(u, 0) if kind == "drelu" else u), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "isa"),
    [(kind, isa) for kind in KINDS for isa in (ISAS if kind in ("fatrelu", "drelu") else ISAS[-1:])],
)
@pytest.mark.parametrize("codec", CODECS)
def test_native_equals_reference(isa: str, codec: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJAVU_ISA", isa)
    for gated in (True, False):
        if kind == "drelu" and not gated:
            continue
        native, reference = pair(configured(kind, gated=gated), codec)
        expected = reference.prefill(TOKENS, reference.new_cache(), all_logits=True)
        assert relative_error(by_decoding(native), expected) <= TOLERANCES[f"native_{codec}"]
        found = native.prefill(TOKENS, native.new_cache(), all_logits=True)
        assert relative_error(found, expected) <= prefill_tolerance(codec, isa)


def everyone(config: ModelConfig) -> LowRank:
    """A predictor that calls every neuron active, so that zeros are found on the way."""
    a, b = np.zeros((4, config.d_model), np.float32), np.zeros((config.d_ff, 4), np.float32)
    return LowRank(a=a, b=b, bias=np.ones(config.d_ff, np.float32), threshold=0.0)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    ("kind", "isa"), [(kind, isa) for kind in KINDS for isa in (ISAS if kind == "silu" else ISAS[-1:])]
)
def test_estimated_products_are_scored_by_the_activation(
    isa: str, kind: str, gated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEJAVU_ISA", isa)
    if kind == "drelu" and not gated:
        pytest.skip("dReLU has a gate")
    native, reference = pair(configured(kind, gated=gated), "f32")
    c, rng = native.config, np.random.default_rng(0)
    n = c.d_ff * (2 if gated else 1)
    maps = {"a": rng.standard_normal((4, c.d_model)), "b": rng.standard_normal((n, 4))}
    selector = Products(**maps, bias=rng.standard_normal(n), spread=rng.random(n), density=0.4)
    plan = AccessPlan(model=native.packed.fingerprint, layers=(LayerPlan(selector),) * c.n_layers)
    for executor in (native, reference):
        executor.set_plan(plan)
    expected = by_decoding(reference)
    masked = native.prefill(TOKENS, native.new_cache(), all_logits=True, sparse=True)
    for found, tolerance in (
        (by_decoding(native), TOLERANCES["native_f32"]),
        (masked, prefill_tolerance("f32", isa)),
    ):  # a score next to the border may fall on either side: most tokens see none of these
        errors = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
        assert np.mean(np.array(errors) <= tolerance) >= 0.75
        assert max(errors) < 0.2


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("kind", "gated"),
    [(kind, gated) for kind in KINDS for gated in (True, False) if gated or kind != "drelu"],
)
def test_leaving_out_exact_zeros_changes_nothing(kind: str, gated: bool, codec: str) -> None:
    config = configured(kind, gated=gated)
    squares = kind == "relu2" and codec == "int8"  # the largest sets a coarse step
    same = TOLERANCES["exact_zeros_squares" if squares else f"exact_zeros_{codec}"]
    for leading in {"int8": (0, 3, 4, 5), "int4": (0, 4)}.get(codec, (0,)):
        native, reference = pair(config, codec, leading=leading)
        dense = {executor: by_decoding(executor) for executor in (native, reference)}
        selectors = [Threshold(threshold=0.0), Oracle(threshold=0.0), everyone(config)]
        for selector in selectors:
            plan = AccessPlan(
                model=native.packed.fingerprint, layers=(LayerPlan(selector),) * config.n_layers
            )
            for executor, logits in dense.items():
                executor.set_plan(plan)
                assert relative_error(by_decoding(executor), logits) <= same
                executor.set_plan(None)
            masked = native.prefill(TOKENS, native.new_cache(), all_logits=True, sparse=True)
            decoding = TOLERANCES[f"native_{codec}"]  # which rounds on its own
            tolerance = max(prefill_tolerance(codec, native.isa), decoding)
            assert relative_error(masked, dense[native]) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_exact_zeros_are_not_touched(kind: str) -> None:
    """The natural density is what a plan with threshold 0 reports, and what the trace counts."""
    config = configured(kind)
    native, reference = pair(config, "f32")
    plan = AccessPlan(
        model=native.packed.fingerprint, layers=(LayerPlan(Oracle(threshold=0.0)),) * config.n_layers
    )
    native.set_plan(plan)
    by_decoding(native)
    natural = (reference.trace(TOKENS).hidden != 0).mean(axis=(1, 2))
    np.testing.assert_allclose(native.last_stats["neurons"], natural, atol=0.005)
    assert (natural < 0.7).all()


@pytest.mark.parametrize("kind", ["fatrelu", "shifted_relu", "drelu", "relu2"])
def test_several_sequences_under_a_plan(kind: str) -> None:
    config = configured(kind)
    native, reference = pair(config, "int8")
    half = Static(indices=np.arange(0, config.d_ff, 2, dtype=np.int32))
    plan = AccessPlan(
        model=native.packed.fingerprint, layers=(LayerPlan(half), LayerPlan(Threshold(density=0.4)))
    )
    found, expected = [], []
    for executor, out in ((native, found), (reference, expected)):
        executor.set_plan(plan)
        caches = [executor.new_cache() for _ in range(3)]
        out += [executor.decode(TOKENS[i : i + 3], caches) for i in range(12)]
    assert relative_error(np.stack(found), np.stack(expected)) <= TOLERANCES["native_int8"]


@pytest.mark.parametrize("values", ["exact", "leading"])
@pytest.mark.parametrize("kind", ["relu2", "fatrelu", "shifted_relu"])
def test_an_ungated_sketch_scores_by_sign(kind: str, values: Any) -> None:
    native, reference = pair(configured(kind, gated=False), "int8", leading=4)
    for rule in ({"density": 0.4}, {"threshold": 0.0}):
        sketch = Sketch(bits=4, values=values, **rule)
        plan = AccessPlan(model=native.packed.fingerprint, layers=(LayerPlan(sketch), LayerPlan(Dense())))
        logits = []
        for executor in (native, reference):
            executor.set_plan(plan)
            logits.append(by_decoding(executor))
        assert relative_error(*logits) <= TOLERANCES["native_int8"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_torch_model_computes_the_same(kind: str) -> None:
    torch = pytest.importorskip("torch")
    from dejavu.adapt.operations import hidden_values

    config = configured(kind)
    rng = np.random.default_rng(0)
    x, up = (rng.standard_normal((5, 9)).astype(np.float32) for _ in range(2))
    a = ops.activate(x, config.activation, config.activation_threshold)
    found = hidden_values(torch.from_numpy(x), None, config)
    np.testing.assert_allclose(found.numpy(), a, rtol=1e-6)
    h = hidden_values(torch.from_numpy(x), torch.from_numpy(up), config)
    np.testing.assert_allclose(h.numpy(), ops.gated(a, up, config.activation), rtol=1e-6)


def test_labels_are_the_neurons_that_are_not_zero() -> None:
    hidden = np.array([[0.0, 1e-6, -2.0]], np.float32)
    sizes = Quantiles()
    sizes.add(np.abs(hidden))
    for kind in KINDS:
        threshold = label_threshold(configured(kind), sizes, density=0.3)
        assert active_neurons(hidden, threshold).tolist() == [[False, True, True]]
    assert label_threshold(configured("silu"), sizes, density=0.3) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu", "activation_threshold": 0.1}, "relu has none"),
        ({"activation": "drelu", "gated": False, "biases": ()}, "has no gate"),
        ({"activation": "fatrelu", "activation_threshold": float("nan")}, "finite"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        dataclasses.replace(GATED, **changes)
