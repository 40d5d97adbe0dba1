"""The native engine's threads: how many there can be, where they cannot be started, and in a fork of the process."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavu import _core
from dejavu.bench.shapes import shape
from dejavu.engine import NativeExecutor, synthetic
from dejavu.engine.native import _engine_config
from dejavu.engine.packed import pack_in_memory
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, Dense, LayerPlan, Static
from tiny_models import relative_error
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.codecs import Codec

    Folder = Callable[[str], Path]

ONE = np.zeros(1, np.int32)
WIDE = shape("llama-1b")


@pytest.fixture
def executor(tiny_folder: Folder) -> NativeExecutor:
    model = open_model(tiny_folder("llama-head-dim"))
    return NativeExecutor(pack_in_memory(model.config, model.weights, "int8", 1), threads=2)


@pytest.mark.parametrize("threads", [-1, 0, 1025])
def test_numbers_of_threads_that_cannot_be(threads: int, executor: NativeExecutor) -> None:
    w = np.ones((2, 3, 64), np.float32)
    rows = np.zeros(2 * _core.bundle_bytes("int8", 64, 3), np.uint8)
    _core.pack("int8", w, rows)
    lead, rest = (np.zeros(n, np.uint8) for n in _core.nested_bytes("int8", 64, 2, 2, 4))
    packed = executor.packed
    calls = [
        lambda: _core.pack("int8", w, rows, threads),
        lambda: _core.split_nested("int8", rows, 64, 2, 4, lead, rest, threads),
        lambda: _core.read_bandwidth(threads, 4096, 1),
        lambda: _core.Engine(
            _engine_config(packed.config),
            "int8",
            "int8",
            packed.buffer,
            packed.places,
            0,
            threads,
            "portable",
        ),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="threads"):
            call()


def test_threads_that_cannot_be_started_end_no_process() -> None:
    script = """
import resource, numpy as np
from dejavu import _core
w, out = np.ones((64, 3, 64), np.float32), np.zeros(64 * _core.bundle_bytes("int8", 64, 3), np.uint8)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (100 << 20), resource.RLIM_INFINITY))
try:
    _core.pack("int8", w, out, 1000)
except (RuntimeError, MemoryError):
    _core.pack("int8", w, out, 2)
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("refused", 0), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("rest", [0, 0.1])  # of the threads: while they wait for work, and when they sleep
def test_a_fork_has_no_threads_and_says_so(rest: float, executor: NativeExecutor) -> None:
    cache = executor.new_cache()
    executor.decode(ONE, [cache])
    time.sleep(rest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            executor.decode(ONE, [cache])
        except RuntimeError as error:
            executor.close()  # does not wait for threads that are not there
            os._exit(0 if "fork" in str(error) and cache.length == 1 else 2)
        os._exit(1)
    end = time.monotonic() + 30
    while (waited := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.01)
    if waited == (0, 0):
        os.kill(child, 9)
        waited = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(waited[1]) == 0
    executor.decode(ONE, [cache])
    assert cache.length == 2


@pytest.mark.parametrize(
    ("codec", "neurons"), [("f32", 2048), ("bf16", 4096), ("int8", 8192), ("int4", 16384)]
)
@pytest.mark.parametrize("threads", [2, 5])
def test_long_ranges_go_in_pieces_to_whoever_is_done(codec: Codec, neurons: int, threads: int) -> None:
    """Neurons and rows of the head are numerous enough for that here. Who took a piece must not show in the results."""
    config = dataclasses.replace(
        WIDE,
        n_layers=2,
        d_model=1024,
        n_heads=16,
        n_kv_heads=8,
        head_dim=64,
        d_ff=neurons * threads // 2,
        vocab_size=16_384,
    )
    everything = Static(indices=np.arange(config.d_ff, dtype=np.int32))

    def logits(threads: int, plan: AccessPlan | None = None) -> NDArray[np.float32]:
        executor = synthetic(config, codec, threads=threads)
        executor.set_plan(plan)
        cache = executor.new_cache()
        found = [executor.decode(np.array([token], np.int32), [cache]) for token in (5, 6, 7)]
        executor.close()
        return np.concatenate(found)

    found, alone = logits(threads), logits(1)
    assert relative_error(found, alone) <= TOLERANCES[f"native_{codec}"]
    for _ in range(3):
        np.testing.assert_array_equal(logits(threads), found)
    plan = AccessPlan(model="synthetic", layers=(LayerPlan(everything, Dense()),) * 2)
    np.testing.assert_array_equal(logits(threads, plan), found)
