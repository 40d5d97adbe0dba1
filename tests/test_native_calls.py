"""What the native engine refuses before it touches memory, what stays as it was then, and calls from several threads."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu import _core
from dejavu.engine import NativeExecutor
from dejavu.engine.lowering import lower
from dejavu.engine.native import _engine_config
from dejavu.engine.packed import pack_in_memory
from dejavu.errors import PlanError
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, KvPolicy, LowRank, Random, Sketch, Threshold, VocabularySketch
from tiny_models import CASES, prompt, relative_error
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Folder = Callable[[str], Path]

NAME = "llama-head-dim"
ONE = np.zeros(1, np.int32)


def load(folder: Path, codec: str = "int8", threads: int = 2, **options: Any) -> NativeExecutor:
    model = open_model(folder)
    return NativeExecutor(pack_in_memory(model.config, model.weights, codec, 1, **options), threads=threads)


def plan_of(executor: NativeExecutor, neurons: Any, **options: Any) -> AccessPlan:
    return AccessPlan.uniform(
        executor.packed.fingerprint, executor.config.n_layers, neurons=neurons, **options
    )


def ahead(executor: NativeExecutor, size: float = 1) -> LowRank:
    f, d, random = executor.config.base_neurons, executor.config.d_model, np.random.default_rng(0)
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((9, d), (f, 9)))
    return LowRank(a=size * a, b=b, bias=np.zeros(f, np.float32), density=0.5, lookahead=1)


def decoded(executor: NativeExecutor) -> NDArray[np.float32]:
    cache = executor.new_cache()
    return np.concatenate([executor.decode(np.array([token], np.int32), [cache]) for token in range(9)])


def test_a_cache_works_with_its_own_executor(tiny_folder: Folder) -> None:
    """Also one of the same shape, whose kept inputs have other sizes."""
    small, bf16, big = load(tiny_folder(NAME)), load(tiny_folder(NAME), "bf16"), load(tiny_folder("bloom"))
    bf16.set_plan(
        plan_of(
            bf16, Random(density=0.5, seed=0), heads=Random(density=0.5, seed=1), kv=KvPolicy("recompute", 8)
        )
    )
    kept = bf16.new_cache()
    bf16.decode(ONE, [kept])
    for executor, cache in ((big, small.new_cache()), (small, kept), (small, kept.fork())):
        own = executor.new_cache()
        with pytest.raises(ValueError, match="another model"):
            executor.decode(np.zeros(2, np.int32), [own, cache])
        with pytest.raises(ValueError, match="another model"):
            executor.prefill(np.zeros(3, np.int32), cache)
        executor.decode(ONE, [own])  # a refused call leaves it free
        assert (own.length, cache.length) == (1, kept.length if cache.length else 0)


@pytest.mark.parametrize("call", ["fork", "truncate", "decode"])
def test_a_cache_in_use_is_left_alone(call: str, tiny_folder: Folder) -> None:
    executor = load(tiny_folder("llama-long"), threads=1)
    cache, tokens = executor.new_cache(), prompt(CASES["llama-long"])
    refused, failed, said = threading.Event(), [], set()
    calls = {
        "fork": cache.fork,
        "truncate": lambda: cache.truncate(0),
        "decode": lambda: executor.decode(np.zeros(2, np.int32), [executor.new_cache(), cache]),
    }

    def fill() -> None:
        try:
            while not refused.is_set():
                executor.prefill(tokens, cache)
                cache.truncate(0)
        except ValueError as error:  # the other thread may have been the first
            failed.append(error)

    end = time.monotonic() + 60
    while not refused.is_set() and time.monotonic() < end:
        thread = threading.Thread(target=fill)
        thread.start()
        while thread.is_alive() and not refused.is_set():
            try:
                calls[call]()
            except ValueError as error:
                said.add(str(error).split(" is ")[0])
                if "another thread" in said:
                    refused.set()
        thread.join()
    assert refused.is_set()
    assert call == "decode" or (said == {"another thread"} and not failed)
    cache.truncate(0)
    assert cache.fork().length == 0


def test_plans_and_counters_while_another_thread_decodes(tiny_folder: Folder) -> None:
    executor = load(tiny_folder(NAME))
    expected, stop, found = decoded(executor), threading.Event(), []
    executor.set_plan(plan_of(executor, Threshold(density=1.0)))

    def decode() -> None:
        while not stop.is_set():
            found.append(decoded(executor))

    thread = threading.Thread(target=decode)
    thread.start()
    for i in range(40):
        executor.set_plan(
            plan_of(executor, (Threshold, Random)[i % 2](density=1.0, **({"seed": 1} if i % 2 else {})))
        )
        executor._engine.barrier_cost = -1 if i % 3 else 1 << 40
        assert executor._engine.barrier_cost in (-1, 1 << 40)
        executor.reset_stats()
        assert executor.last_stats["tokens"] >= 0
    stop.set()
    thread.join()
    for logits in found:
        assert relative_error(logits, expected) <= TOLERANCES["chunked_vs_whole"]


def test_a_plan_that_cannot_be_set_changes_nothing(tiny_folder: Folder) -> None:
    executor = load(tiny_folder(NAME))
    c = executor.config
    sketch = VocabularySketch(
        bits=4, exact=9, directions=np.eye(3, c.embed_dim), missing=np.ones((c.vocab_size, 3))
    )
    executor.set_plan(plan_of(executor, ahead(executor), vocabulary=sketch))
    expected = decoded(executor)
    stats = executor.last_stats["tokens"]
    with pytest.raises(ValueError, match="not packed nested"):
        executor._engine.set_plan(lower(plan_of(executor, Sketch(bits=4, density=0.5)), c, 1))
    assert executor.last_stats["tokens"] == stats
    with pytest.raises(PlanError, match="float16"):
        executor.set_plan(plan_of(executor, ahead(executor, 1e12)))
    np.testing.assert_array_equal(decoded(executor), expected)


@pytest.mark.parametrize("name", ["mean", "directions", "missing"])
def test_sketches_of_the_head_are_finite(name: str, tiny_folder: Folder) -> None:
    executor = load(tiny_folder(NAME))
    c = executor.config
    sketch = VocabularySketch(
        bits=4,
        exact=9,
        mean=np.ones(c.embed_dim, np.float32),
        directions=np.eye(3, c.embed_dim),
        missing=np.ones((c.vocab_size, 3)),
    )
    lowered = lower(plan_of(executor, Random(density=0.5, seed=0), vocabulary=sketch), c, 1)
    executor._engine.set_plan(lowered)
    array = lowered["vocabulary"][name].copy()
    array.view(np.uint8)[-64 if name == "missing" else 0 :] = 0xFF
    lowered["vocabulary"][name] = array
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity"):
        executor._engine.set_plan(lowered)


def test_kept_inputs_count_as_memory_until_they_are_needed_no_more(tiny_folder: Folder) -> None:
    executor = load(tiny_folder(NAME))
    plain, tracking = executor.new_cache(), executor.new_cache()
    executor.decode(ONE, [plain])
    executor.set_plan(plan_of(executor, Random(density=0.5, seed=0), kv=KvPolicy("recompute", 64)))
    executor.decode(ONE, [tracking])
    inputs = executor.config.n_layers * 64 * executor.config.d_model
    assert tracking.nbytes >= plain.nbytes + 2 * inputs
    executor.prefill(np.zeros(3, np.int32), tracking)
    assert tracking.nbytes == plain.nbytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel_residual": True, "pre_norm": False}, "parallel_residual goes with"),
        ({"parallel_residual": True, "post_norms": True}, "parallel_residual goes with"),
        ({"windowed": [True, False]}, "windowed, but window is 0"),
        ({"position_offset": 2**31 - 1}, "position_offset is out of range"),
        ({"heads": 1 << 20, "head_dim": 1 << 20}, "out of range"),
        ({"position": "sideways"}, "position sideways is unknown"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], message: str, tiny_folder: Folder) -> None:
    packed = load(tiny_folder(NAME)).packed
    rest = (packed.codec, "int8", packed.buffer, packed.places, 0, 1, "portable")
    _core.Engine(_engine_config(packed.config), *rest)
    with pytest.raises(ValueError, match=message):
        _core.Engine(_engine_config(packed.config) | changes, *rest)


@pytest.mark.parametrize(
    ("codec", "head"), [("int8", "f32"), ("f32", "int8"), ("int8", "int4"), ("bf16", "f32")]
)
def test_codecs_that_do_not_go_together(codec: str, head: str, tiny_folder: Folder) -> None:
    packed = load(tiny_folder(NAME), codec).packed
    config = _engine_config(packed.config)
    with pytest.raises(ValueError, match="head's codec"):
        _core.Engine(config, codec, head, packed.buffer, packed.places, 0, 1, "portable")


def test_leading_bits_that_nobody_announced(tiny_folder: Folder) -> None:
    packed = load(tiny_folder(NAME), leading=4).packed
    config = _engine_config(packed.config)
    _core.Engine(config, "int8", "int8", packed.buffer, packed.places, 4, 1, "portable")
    with pytest.raises(ValueError, match=r"layers\.0\.lead"):
        _core.Engine(config, "int8", "int8", packed.buffer, packed.places, 0, 1, "portable")
