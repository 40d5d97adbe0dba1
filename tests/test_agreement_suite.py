"""The emulation of llama.cpp's 8-bit activations: products as ggml defines them; only near ties are followed."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from dejavu.bench.peers.synthetic_gguf import write_synthetic_gguf
from dejavu.bench.shapes import shape

ROOT = Path(__file__).parent.parent
TOKENS = np.array([3, 1, 4, 1, 5, 9], np.int32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(
        shape("tinyllama-1.1b"),
        vocab_size=64,
        d_model=64,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        head_dim=32,
        d_ff=96,
        tied_head=True,
    )
    target = tmp_path_factory.mktemp("agreement") / "tiny.gguf"
    write_synthetic_gguf(target, config, "Q4_1", seed=1)
    return target


@pytest.fixture
def executor(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module("agreement_suite.rounding").RoundingExecutor(path)
    for name in [name for name in sys.modules if name.startswith("agreement_suite")]:
        del sys.modules[name]


def test_products_are_those_of_blocks(executor: Any, path: Path) -> None:
    x = np.random.default_rng(2).normal(size=(3, 64)).astype(np.float32)
    x[1, :32] = 0
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, source in (("gate", "ffn_gate"), ("q", "attn_q")):
        blocks = np.asarray(tensors[f"blk.1.{source}.weight"].data).reshape(-1, 2, 20)
        expected = np.zeros((3, len(blocks)))
        for t, row, g in np.ndindex(3, len(blocks), 2):
            scale, minimum = blocks[row, g, :4].view(np.float16).astype(np.float64)
            codes = np.concatenate([blocks[row, g, 4:] & 15, blocks[row, g, 4:] >> 4]).astype(int)
            part = x[t, 32 * g : 32 * g + 32]
            step = np.float32(np.abs(part).max() / np.float32(127))
            q = np.rint(part * (np.float32(127) / np.abs(part).max())) if part.any() else part
            total = np.float16(step * q.sum())
            expected[t, row] += scale * float(np.float16(step)) * (codes @ q) + minimum * float(total)
        if name == "q":  # GGUF interleaves the halves of a head
            expected = expected.reshape(3, 2, 16, 2).swapaxes(2, 3).reshape(3, -1)
        np.testing.assert_allclose(executor._linear(f"layers.1.{name}", x), expected, rtol=2e-5, atol=2e-5)


def recorded(executor: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """What the watched products read in one run of `TOKENS`."""
    found, anew = {}, executor._round_anew

    def note(name: str, x: np.ndarray) -> Any:
        source = executor._sources[name]
        if source in executor.watch or name == "head":
            found[source] = x
        else:  # k is computed before q
            found[source.replace("attn_k", "attn_q")] = x
        return anew(name, x)

    with monkeypatch.context() as patch:
        patch.setattr(executor, "_round_anew", note)
        executor.prefill(TOKENS, executor.new_cache(), all_logits=True)
    assert set(found) == set(executor.watch)
    return found


def test_near_ties_are_followed(executor: Any) -> None:
    x = np.random.default_rng(4).normal(size=(200, 64)).astype(np.float32)
    alone, _ = executor._round_anew("layers.0.q", x)
    executor._stop = len(x)

    def following(theirs: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        before = executor.roundings()
        executor.follow({"blk.0.attn_q.weight": theirs})
        rounded, _ = executor._round_anew("layers.0.k", x)
        return rounded, {name: n - before[name] for name, n in executor.roundings().items()}

    rounded, counts = following(x)
    np.testing.assert_array_equal(rounded, alone)
    assert counts["roundings"] == 200 * (64 + 2 + 2)
    assert counts["near_ties"] == counts["other_differences"] == 0
    near = x * np.float32(1 + 2e-5)
    rounded, counts = following(near)
    assert counts["near_ties"] > 0
    assert counts["other_differences"] == 0
    executor.follow(None)
    np.testing.assert_array_equal(rounded, executor._round_anew("layers.0.q", near)[0])
    far = (x * np.random.default_rng(5).normal(1, 0.05, x.shape)).astype(np.float32)
    rounded, counts = following(far)
    assert counts["other_differences"] > 1000
    assert (rounded == alone).mean() > 0.9  # theirs were not taken


def test_following_itself_changes_nothing(executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = recorded(executor, monkeypatch)
    alone = executor.prefill(TOKENS, executor.new_cache())
    executor.follow(inputs)
    np.testing.assert_array_equal(executor.prefill(TOKENS, executor.new_cache()), alone)
    cache = executor.new_cache()
    executor.prefill(TOKENS[:4], cache)
    for token in TOKENS[4:]:
        executor.decode(np.array([token]), [cache])
    assert executor.roundings()["other_differences"] == 0


def test_other_types_are_refused(tmp_path: Path, executor: Any) -> None:
    config = replace(executor.config, tied_head=True)
    write_synthetic_gguf(tmp_path / "bf16.gguf", config, "BF16")
    with pytest.raises(SystemExit, match="is BF16: how llama"):
        type(executor)(tmp_path / "bf16.gguf")
