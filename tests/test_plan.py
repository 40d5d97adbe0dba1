"""Access plans: their checks, and saving and loading them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavu.codecs import encode, roundtrip
from dejavu.errors import PlanError
from dejavu.models.config import ModelConfig
from dejavu.models.safetensors_writer import write_safetensors
from dejavu.nested import estimate
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

if TYPE_CHECKING:
    from pathlib import Path

D, F, H = 40, 70, 6


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def low_rank(n: int, rank: int = 5, seed: int = 0, **options: Any) -> LowRank:
    options = options or {"density": 0.3}
    return LowRank(a=normal(rank, D, seed=seed), b=normal(n, rank, seed=seed + 1), bias=normal(n), **options)


def products(**options: Any) -> Products:
    maps = {"a": normal(5, D), "b": normal(F, 5), "bias": normal(F), "spread": np.ones(F)}
    return Products(**maps | {"density": 0.3} | options)


def compensator(rank: int) -> Compensator:
    return Compensator(a=normal(rank, D), b=normal(D, rank, seed=9), bias=normal(D, seed=2))


picks = st.one_of(
    st.floats(0.001, 1).map(lambda x: {"density": x}), st.floats(-1e9, 1e9).map(lambda x: {"threshold": x})
)


@st.composite
def trained(draw: Any, n: int) -> LowRank:
    options = draw(picks) | {
        "lookahead": draw(st.integers(0, 2)),
        "hidden": draw(st.sampled_from(["linear", "relu"])),
    }
    scale = draw(st.sampled_from([1e-7, 1e-5, 1e-4, 1e-3, 1.0, 1e4]))
    rank, seed = draw(st.integers(1, 67)), draw(st.integers(0, 999))
    return LowRank(
        a=scale * normal(rank, D, seed=seed),
        b=scale * normal(n, rank, seed=seed),
        bias=normal(n, seed=seed),
        **options,
    )


@st.composite
def estimates(draw: Any) -> Products:
    rank, outputs = draw(st.integers(1, 40)), draw(st.sampled_from([F, 2 * F]))
    return Products(
        a=normal(rank, D, seed=rank),
        b=normal(outputs, rank),
        bias=normal(outputs),
        spread=np.abs(normal(outputs, seed=3)),
        lookahead=draw(st.integers(0, 2)),
        **draw(picks),
    )


def shared(n: int) -> Any:
    return st.one_of(
        st.just(Dense()),
        st.sets(st.integers(0, n - 1)).map(lambda x: Static(indices=np.array(sorted(x), np.int32))),
        st.tuples(picks, st.integers(0, 2**63 - 1)).map(lambda x: Random(**x[0], seed=x[1])),
        picks.map(lambda x: Oracle(**x)),
        trained(n),
    )


neurons = st.one_of(
    shared(F),
    picks.map(lambda x: Threshold(**x)),
    estimates(),
    st.tuples(picks, st.integers(2, 4), st.integers(0, 2)).map(
        lambda x: Sketch(**x[0], bits=x[1], lookahead=x[2])
    ),
    st.tuples(picks, st.integers(2, 4), st.sampled_from(["exact", "leading"])).map(
        lambda x: Sketch(**x[0], bits=x[1], values=x[2])
    ),
)
fives = st.tuples(picks, st.sampled_from(["exact", "leading"])).map(
    lambda x: Sketch(**x[0], bits=5, values=x[1])
)


def layer_plans(neurons: st.SearchStrategy[Any]) -> st.SearchStrategy[LayerPlan]:
    compensators = st.one_of(st.none(), st.sampled_from([0, 1, 33]).map(compensator))
    return st.builds(LayerPlan, neurons, shared(H), compensators)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-1, 1), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
plans = st.builds(
    AccessPlan,
    model=st.text("0123456789abcdef", min_size=1, max_size=64),
    layers=st.one_of(
        st.lists(layer_plans(kinds), min_size=1, max_size=3).map(tuple)
        for kinds in (neurons, shared(F) | fives)
    ),
    name=st.text("aé-1", max_size=9),
    kv=st.builds(KvPolicy, st.sampled_from(["write", "recompute"]), st.integers(1, 4096)),
    vocabulary=st.one_of(
        st.just(Dense()),
        st.builds(
            VocabularySketch,
            bits=st.integers(2, 4),
            exact=st.integers(1, 9999),
            mean=st.sampled_from([np.empty(0, np.float32), np.arange(D, dtype=np.float32)]),
            directions=st.just(np.eye(2, D, dtype=np.float32)),
            missing=st.just(np.arange(20, dtype=np.float32).reshape(10, 2)),
        ),
    ),
    evidence=st.dictionaries(st.text(max_size=5), json_values, max_size=3),
)


def assert_same(found: Any, expected: Any) -> None:
    """Equality all the way down; arrays bit for bit."""
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name))
    elif isinstance(expected, tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    else:
        assert found == expected


@settings(max_examples=30, deadline=None)
@given(plan=plans)
def test_what_is_saved_comes_back(plan: AccessPlan, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("plan") / "new"
    plan.save(folder)
    assert_same(AccessPlan.load(folder, fingerprint=plan.model), plan)
    assert sorted(p.name for p in folder.iterdir()) == ["plan.json", "predictors.safetensors"]


def test_the_arrays_file_is_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    AccessPlan(model="m", layers=(LayerPlan(low_rank(F), Dense(), compensator(3)),)).save(tmp_path)
    arrays = load_file(tmp_path / "predictors.safetensors")
    assert {name: (str(a.dtype), a.shape) for name, a in arrays.items()} == {
        "layers.0.neurons.a.codes": ("int8", (5, D)),
        "layers.0.neurons.a.scales": ("float16", (5, 2)),
        "layers.0.neurons.b.codes": ("int8", (F, 5)),
        "layers.0.neurons.b.scales": ("float16", (F, 1)),
        "layers.0.neurons.bias": ("float32", (F,)),
        "layers.0.compensator.a.codes": ("int8", (3, D)),
        "layers.0.compensator.a.scales": ("float16", (3, 2)),
        "layers.0.compensator.b.codes": ("int8", (D, 3)),
        "layers.0.compensator.b.scales": ("float16", (D, 1)),
        "layers.0.compensator.bias": ("float32", (D,)),
    }


def test_predictors_are_rounded_when_made() -> None:
    found, b = low_rank(F), normal(F, 5, seed=1)
    np.testing.assert_array_equal(found.a, roundtrip("int8", normal(5, D)))
    np.testing.assert_array_equal(found.b, estimate(encode("int8", found.b), 4))
    assert np.abs(found.b - b).max() <= np.abs(b).max() / 15


BOTH = (LayerPlan(Sketch(density=0.5, bits=4)), LayerPlan(Sketch(density=0.5, bits=5)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Oracle(), "either a density or a threshold"),
        (lambda: Oracle(density=0.5, threshold=1.0), "either a density or a threshold"),
        (lambda: Oracle(density=0.0), "above 0 and up to 1"),
        (lambda: Oracle(density=1.5), "above 0 and up to 1"),
        (lambda: Oracle(density=float("nan")), "finite"),
        (lambda: Threshold(threshold=float("inf")), "finite"),
        (lambda: Threshold(threshold=True), "finite"),
        (lambda: Random(density=1, seed=-1), "seed is -1"),
        (lambda: Sketch(density=0.5, bits=6), "bits is 6; supported: 2, 3, 4, 5"),
        (lambda: AccessPlan(model="m", layers=BOTH), "sketches of 4, 5 bits in one plan"),
        (lambda: Sketch(density=0.5, bits=3, lookahead=3), "lookahead is 3"),
        (lambda: Sketch(density=0.5, bits=3, values="all"), "values is 'all'"),
        (lambda: Sketch(density=0.5, bits=3, values="leading", lookahead=1), "looks ahead knows no values"),
        (lambda: low_rank(F, density=0.5, hidden="tanh"), "hidden is 'tanh'; supported: linear, relu"),
        (lambda: dataclasses.replace(low_rank(F), b=normal(F, 4)), r"b has shape \[70, 4\]; \[70, 5\]"),
        (lambda: dataclasses.replace(low_rank(F), bias=normal(F, 1)), r"shape \[70, 1\]; 1 axes"),
        (lambda: dataclasses.replace(low_rank(F), bias=np.full(F, np.nan)), "finite"),
        (lambda: dataclasses.replace(low_rank(F), a=1e9 * normal(5, D)), "does not fit into int8"),
        (lambda: products(lookahead=3), "lookahead is 3"),
        (lambda: products(spread=normal(F, seed=1)), "spread is negative"),
        (lambda: products(spread=np.ones(F - 1)), r"spread has shape \[69\]; \[70\]"),
        (lambda: products(b=normal(F, 4)), r"b has shape \[70, 4\]; \[70, 5\]"),
        (lambda: Static(indices=np.array([3, 1])), "ascend"),
        (lambda: Static(indices=np.array([1, 1])), "ascend"),
        (lambda: Static(indices=np.array([-1, 1])), "ascend"),
        (lambda: dataclasses.replace(compensator(3), b=normal(D, 4)), r"b has shape \[40, 4\]"),
        (lambda: KvPolicy("forget"), "supported: write, recompute"),
        (lambda: KvPolicy("recompute", 0), "buffer is 0"),
        (lambda: VocabularySketch(bits=3, exact=0), "exact is 0"),
        (lambda: LayerPlan(heads=Threshold(threshold=0.0)), "heads: selector Threshold"),
        (lambda: LayerPlan(compensator=Dense()), "compensator is Dense"),
        (lambda: AccessPlan(model="x" * 300, layers=()), "model is"),
    ],
)
def test_values_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make()


CONFIG = ModelConfig("test", 50, D, 2, H, 3, 8, F + 16, 64, refined=16)


def test_a_plan_must_fit_its_model() -> None:
    layer = LayerPlan(low_rank(F), low_rank(H), compensator(2))
    plan = AccessPlan(model="abcd", layers=(layer, LayerPlan()), name="mine")
    plan.check_fits(CONFIG, "abcd")
    with pytest.raises(PlanError, match="'mine' is for model abcd, this one is ef") as caught:
        plan.check_fits(CONFIG, "ef")
    assert "dejavu train" in str(caught.value)
    cases = {
        "the plan has 1 layers, the model 2": (layer,),
        r"layer 1: neurons: bias has shape \[86\]; \[70\]": (layer, LayerPlan(low_rank(F + 16))),
        r"layer 1: heads: bias has shape \[70\]; \[6\]": (layer, LayerPlan(heads=low_rank(F))),
        r"layer 0: neurons: index 70 of 70": (LayerPlan(Static(indices=np.array([0, F]))), layer),
    }
    for message, layers in cases.items():
        with pytest.raises(PlanError, match=message):
            AccessPlan(model="abcd", layers=layers).check_fits(CONFIG, "abcd")
    narrow = dataclasses.replace(CONFIG, d_model=48)
    with pytest.raises(PlanError, match=r"neurons: a has shape \[5, 40\]; \[5, 48\]"):
        plan.check_fits(narrow, "abcd")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    layers = (LayerPlan(low_rank(F), low_rank(H), compensator(2)), LayerPlan(Sketch(bits=3, density=0.5)))
    AccessPlan(model="abcd", layers=layers, name="mine").save(tmp_path)
    return tmp_path


def edit(folder: Path, *path: Any, value: Any = None, drop: bool = False) -> None:
    record = json.loads((folder / "plan.json").read_text())
    place = record
    for step in path[:-1]:
        place = place[step]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    (folder / "plan.json").write_text(json.dumps(record))


def rewrite_arrays(folder: Path, change: Any) -> None:
    """Change the arrays, and promise the new file's hash."""
    import hashlib

    from safetensors.numpy import load_file

    arrays = load_file(folder / "predictors.safetensors")
    change(arrays)
    stream = io.BytesIO()
    write_safetensors(stream, arrays)
    replace_arrays(folder, stream.getvalue(), hashlib.sha256(stream.getvalue()).hexdigest())


def replace_arrays(folder: Path, data: bytes, sha256: str) -> None:
    (folder / "predictors.safetensors").write_bytes(data)
    edit(folder, "predictors", value={"bytes": len(data), "sha256": sha256})


def refused(folder: Path, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        AccessPlan.load(folder)
    assert caught.value.fix


LAYER = ("layers", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "schema 2; this version of dejavu reads schema 1"),
        (("schema",), None, "schema None"),
        (("surprise",), 1, "unknown 'surprise'"),
        (("model",), 3, "model is 3; a str"),
        (("name",), "x\ny", "printable"),
        (("evidence",), [], "evidence is"),
        (("layers",), {}, "layers is"),
        (("layers",), [], "0 layers"),
        (LAYER, [], "an object is needed"),
        ((*LAYER, "neurons"), 7, "kind None; supported: dense, static"),
        ((*LAYER, "neurons", "kind"), "magic", "kind 'magic'; supported: dense"),
        (
            (*LAYER, "heads", "kind"),
            "sketch",
            "kind 'sketch'; supported: dense, static, random, oracle, low_rank",
        ),
        ((*LAYER, "neurons", "bias"), [1], "unknown 'bias'"),
        ((*LAYER, "neurons", "lookahead"), 1.0, "lookahead is 1.0"),
        ((*LAYER, "neurons", "density"), "much", "density is 'much'"),
        ((*LAYER, "neurons", "threshold"), 1.0, "either a density or a threshold"),
        ((*LAYER, "compensator"), None, "compensator: kind None"),
        ((*LAYER, "compensator", "kind"), "mean", "kind 'mean'; supported: low_rank"),
        ((*LAYER, "compensator"), {"kind": "none"}, "holds 'layers.0.compensator.a.codes', which"),
        (("layers", 1, "neurons"), {"kind": "sketch", "density": 0.5}, "bits"),
        (("layers", 1, "neurons"), {"kind": "static"}, "lacks 'layers.1.neurons.indices'"),
        (("kv", "kind"), "lose", "K/V policy is 'lose'"),
        (("kv", "buffer"), True, "buffer is True"),
        (("vocabulary",), {"kind": "sketch", "bits": 3}, "lacks 'vocabulary.mean'"),
        (("vocabulary",), {"kind": "low_rank"}, "supported: dense, sketch"),
        (("predictors", "sha256"), "0" * 64, "truncated or of another plan"),
        (("predictors",), None, "an object is needed"),
    ],
)
def test_plan_json_is_not_trusted(path: Any, value: Any, message: str, saved: Path) -> None:
    edit(saved, *path, value=value)
    refused(saved, message)


@pytest.mark.parametrize("path", [("model",), ("kv", "buffer"), (*LAYER, "heads"), ("predictors", "bytes")])
def test_missing_fields(path: Any, saved: Path) -> None:
    edit(saved, *path, drop=True)
    refused(saved, f"{path[-1]} is missing")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"schema": NaN}', b'{"a": 1, "a": 1}', b"\xff", b"[" * 9999]
)
def test_what_is_no_json(text: bytes, saved: Path) -> None:
    (saved / "plan.json").write_bytes(text)
    refused(saved, "plan.json")


def test_missing_files(saved: Path) -> None:
    (saved / "predictors.safetensors").unlink()
    refused(saved, "cannot read predictors.safetensors: No such file")
    refused(saved / "nowhere", "cannot read .*plan.json")


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_damaged_arrays(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every cut and every flipped byte is noticed; with a forged hash, nothing worse than a PlanError comes of it."""
    import hashlib

    folder = tmp_path_factory.mktemp("damaged")
    AccessPlan(model="abcd", layers=(LayerPlan(low_rank(9), low_rank(H), compensator(1)),)).save(folder)
    path = folder / "predictors.safetensors"
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    path.write_bytes(damaged)
    refused(folder, "truncated or of another plan")
    replace_arrays(folder, damaged, hashlib.sha256(damaged).hexdigest())
    with contextlib.suppress(PlanError):
        AccessPlan.load(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers.0.neurons.bias", np.zeros(F, np.int32), "is int32; float32 is needed"),
        ("layers.0.neurons.bias", np.zeros(F - 1, np.float32), r"b has shape \[70, 5\]; \[69, 5\]"),
        ("layers.0.neurons.bias", np.full(F, np.inf, np.float32), "finite"),
        ("layers.0.neurons.a.codes", np.zeros((5, D), np.float32), "is float32; int8 is needed"),
        ("layers.0.neurons.a.codes", np.zeros(5, np.int8), r"codes \[5\] with scales"),
        ("layers.0.neurons.a.codes", np.zeros((5, 99), np.int8), r"codes \[5, 99\] with scales \[5, 2\]"),
        ("layers.0.neurons.a.scales", np.full((5, 2), np.inf, np.float16), "finite"),
        ("layers.0.heads.b.codes", np.zeros((H, 4), np.int8), r"b has shape \[6, 4\]; \[6, 5\]"),
        ("more", np.zeros(3, np.int8), "holds 'more'"),
    ],
)
def test_arrays_are_not_trusted(name: str, value: Any, message: str, saved: Path) -> None:
    rewrite_arrays(saved, lambda arrays: arrays.update({name: value}))
    refused(saved, message)


def test_a_missing_array(saved: Path) -> None:
    rewrite_arrays(saved, lambda arrays: arrays.pop("layers.0.neurons.b.scales"))
    refused(saved, r"lacks 'layers\.0\.neurons\.b\.scales'")


def test_saving_over_a_plan_replaces_it(saved: Path) -> None:
    AccessPlan.uniform("ef", 3, name="other").save(str(saved))
    plan = AccessPlan.load(str(saved), fingerprint="ef")
    assert (plan.name, len(plan.layers)) == ("other", 3)
    with pytest.raises(PlanError, match="for model ef, this one is abcd"):
        AccessPlan.load(saved, fingerprint="abcd")


@pytest.mark.parametrize("synced", [0, 1])
def test_a_full_disk_keeps_the_old_plan(synced: int, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [None] * synced  # files that still find room

    def full(fd: int) -> None:
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PlanError, match="No space left") as caught:
        AccessPlan.uniform("ef", 1).save(saved)
    assert "free some space" in str(caught.value)
    monkeypatch.undo()
    assert AccessPlan.load(saved).name == "mine"
    assert len(list(saved.iterdir())) == 2


def test_evidence_must_be_json(tmp_path: Path) -> None:
    for evidence in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(PlanError, match="plain JSON"):
            AccessPlan(model="m", layers=(LayerPlan(),), evidence=evidence).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_uniform_plans_and_leading_bits() -> None:
    plan = AccessPlan.uniform("m", 3, neurons=Sketch(bits=2, threshold=0.1))
    assert len(plan.layers) == 3
    assert plan.leading == 4  # the fewest of which two can be read
    assert [plan.can_read(n) for n in (0, 3, 4)] == [False, False, True]
    assert AccessPlan.uniform("m", 3, heads=Oracle(density=0.5)).leading == 0
    three = AccessPlan.uniform("m", 1, neurons=Sketch(bits=3, threshold=0.1))
    assert three.leading == 3
    assert [three.can_read(n) for n in (0, 3, 4, 5)] == [False, True, True, False]
    five = AccessPlan.uniform("m", 1, neurons=Sketch(bits=5, threshold=0.1))
    assert five.leading == 5
    assert [five.can_read(n) for n in (0, 3, 4, 5)] == [False, False, False, True]
    assert [five.suits(codec) for codec in ("f32", "bf16", "int8", "int4")] == [False, False, True, False]
    head = AccessPlan.uniform("m", 1, vocabulary=VocabularySketch(bits=3, exact=9))
    assert head.leading == 0  # the head is there as a whole
    assert [head.suits(codec) for codec in ("f32", "bf16", "int8", "int4")] == [False, False, True, True]
