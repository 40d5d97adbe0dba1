"""Kernels on vectors and on the KV cache against float64, on every instruction set and odd sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavu import _core
from row_samples import Walled
from test_rows import act
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable

ISAS = [isa for isa in ("portable", "avx2", "avx512") if isa in _core.isas()]
SIZES = [1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 100, 576, 1025]
LIMIT = TOLERANCES["kernels"]


def vector(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32) * 3


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= LIMIT * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_norms(isa: str, n: int, offset: float) -> None:
    x, weight, bias = vector(n) + np.float32(offset), vector(n, 1), vector(n, 2)
    wide, out = x.astype(np.float64), np.full(n, np.nan, np.float32)
    _core.norm(isa, x, weight, None, True, 1e-5, out)
    assert close(out, wide / np.sqrt((wide**2).mean() + 1e-5) * weight)
    for b in (bias, None):
        _core.norm(isa, x, weight, b, False, 1e-3, out)
        centred = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-3) * weight
        # a mean of 100 leaves fewer digits of the difference
        scale = 1 + offset
        assert np.abs(out - (centred + (0 if b is None else b))).max() <= LIMIT * scale * max(
            1, np.abs(centred).max()
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", ["relu", "silu", "gelu", "gelu_tanh"])
def test_activations(isa: str, n: int, name: str) -> None:
    x, up = vector(n) * 5, vector(n, 1)
    x[: min(n, 3)] = [0.0, -90.0, 90.0][: min(n, 3)]
    out = np.full(n, np.nan, np.float32)
    _core.activate(isa, name, x, None, out)
    assert close(out, act(name, x))
    _core.activate(isa, name, x, up, out)
    assert close(out, act(name, x) * up)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
def test_softmax(isa: str, n: int) -> None:
    x = vector(n) * 20
    if n > 2:
        x[1] = -np.inf
    highest = float(x.max())
    expected = np.exp(x.astype(np.float64) - highest)
    log_sum = _core.softmax(isa, x)
    assert close(x, expected / expected.sum())
    assert abs(log_sum - highest - np.log(expected.sum())) <= 1e-5 * max(abs(highest), 1)
    assert abs(float(x.sum()) - 1) < 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", SIZES)
def test_softcap(isa: str, n: int) -> None:
    x = vector(n) * 20
    expected = 30 * np.tanh(x.astype(np.float64) / 30)
    _core.softcap(isa, x, 30.0)
    assert close(x, expected)


def stored(kv: str, x: np.ndarray) -> np.ndarray:
    """What the cache holds of vectors [n, head_dim], as float64."""
    if kv == "f16":
        x = x.astype(np.float16)
    elif kv == "bf16":
        bits = x.view(np.uint32)
        x = (((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16) << 16).astype(np.uint32).view(np.float32)
    elif kv == "int8":
        scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
        x = np.rint(x / scale) * scale
    return x.astype(np.float64)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("head_dim", [1, 6, 14, 64, 80, 100, 128])
@pytest.mark.parametrize(("n", "first"), [(1, 0), (2, 0), (16, 3), (17, 16), (100, 50), (128, 0)])
def test_attention(isa: str, kv: str, head_dim: int, n: int, first: int) -> None:
    heads = 7
    random = np.random.default_rng(n)
    q = random.standard_normal((heads, head_dim)).astype(np.float32)
    keys, values = random.standard_normal((2, n, head_dim)).astype(np.float32)
    scores, out = poisoned(heads, n), poisoned(heads, head_dim)
    _core.attend(isa, kv, q, keys, values, 0.5, first, scores, out)
    expected = 0.5 * q @ stored(kv, keys)[first:].T  # [heads, n - first]
    assert close(scores[:, first:], expected)
    assert np.isnan(scores[:, :first]).all()
    weights = np.exp(expected - expected.max(1, keepdims=True))
    assert close(out, weights / weights.sum(1, keepdims=True) @ stored(kv, values)[first:])
    for few in range(1, heads):  # each head has the bits that it has alone, or in other company
        some, mixed = poisoned(few, n), poisoned(few, head_dim)
        _core.attend(isa, kv, q[heads - few :].copy(), keys, values, 0.5, first, some, mixed)
        np.testing.assert_array_equal(some, scores[heads - few :])
        np.testing.assert_array_equal(mixed, out[heads - few :])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("skew", [1, 7])
@pytest.mark.parametrize("n", [1, 15, 33, 100])
def test_nothing_is_written_beside(isa: str, skew: int, n: int) -> None:
    """Vectors at any address: the same bits as at another, and nothing but the output is written."""
    x, more, q = vector(n), vector(n, 1), vector(3 * 20, 2).reshape(3, 20)
    keys, values = vector(n * 20, 3).reshape(n, 20), vector(n * 20, 4).reshape(n, 20)

    def run(at: Walled | Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
        outs = [at(np.zeros(n, np.float32)) for _ in range(4)]
        _core.norm(isa, at(x), at(more), None, True, 1e-5, outs[0])
        _core.norm(isa, at(x), at(more), at(x), False, 1e-5, outs[1])
        _core.activate(isa, "silu", at(x), None, outs[2])
        _core.activate(isa, "gelu", at(x), at(more), outs[3])
        outs += [at(x), at(x)]
        _core.softmax(isa, outs[4])
        _core.softcap(isa, outs[5], 3.0)
        for kv in ("f32", "f16", "bf16", "int8"):
            for first in (0, n // 2):
                outs += [at(np.zeros((3, n), np.float32)), at(np.zeros((3, 20), np.float32))]
                _core.attend(isa, kv, at(q), at(keys), at(values), 0.5, first, *outs[-2:])
        return outs

    walled = Walled(skew)
    for found, expected in zip(run(walled), run(lambda values: values.copy()), strict=True):
        np.testing.assert_array_equal(found, expected)
    walled.check()


def poisoned(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def test_wrong_sizes_and_names_are_refused() -> None:
    x = np.zeros(8, np.float32)
    with pytest.raises(ValueError, match="length"):
        _core.norm("portable", x, x[:7], None, True, 1e-5, x.copy())
    with pytest.raises(ValueError, match="unknown"):
        _core.softmax("sse9", x)
    with pytest.raises(ValueError, match="unknown"):
        _core.activate("portable", "swish", x, None, x.copy())
    with pytest.raises(TypeError):
        _core.softmax("portable", np.zeros(8, np.float64))


def test_read_bandwidth_is_positive() -> None:
    assert _core.read_bandwidth(2, 1 << 22, 2) > 1e8
