"""Packing against its NumPy twin bit for bit, and every row kernel against float64 on the decoded weights."""

from __future__ import annotations

import numpy as np
import pytest

from dejavu import _core, codecs
from row_samples import ISAS, POISON, WIDTHS, decoded, packed, weights
from tolerances import TOLERANCES


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


@pytest.mark.parametrize("codec", codecs.CODECS)
@pytest.mark.parametrize("width", WIDTHS)
def test_packing_equals_the_twin_bit_for_bit(codec: str, width: int) -> None:
    w = weights((3, 5, width))
    out = np.full(w.shape, POISON)
    _core.unpack(codec, packed(codec, w), width, 5, out)
    np.testing.assert_array_equal(out, decoded(codec, w))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", codecs.CODECS)
@pytest.mark.parametrize("width", WIDTHS)
def test_decoding_kernels_equal_the_twin(isa: str, codec: str, width: int) -> None:
    w = weights((2, 3, width))
    out = np.full(w.shape, POISON)
    _core.decode_rows(isa, codec, packed(codec, w), width, 3, out)
    assert relative(out, decoded(codec, w)) <= TOLERANCES["decode_rows"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", codecs.CODECS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [0, 2])
def test_dot(isa: str, codec: str, width: int, offset: int) -> None:
    x = np.random.default_rng(1).standard_normal(width).astype(np.float32)
    x[::7] *= 50  # outliers, as in real activations
    for together, most in ((23, 23), (16, 32)):
        w = weights((3, together, width))
        data = packed(codec, w, offset if codec != "f32" else 2 * offset)
        after = decoded(codec, w)[1:].reshape(2 * together, width).astype(np.float64)
        beyond = 2 * together - 5  # from bundle 1 on into bundle 2
        for first, n in ((0, together), (3, 8), (most - 1, 1), (5, 0), (1, 15), (5, beyond)):
            out = np.full(n, POISON)
            _core.dot(isa, codec, data, together, 1, first, x, out)
            rows = after[first : first + n]
            limit = TOLERANCES["dot"] * (np.abs(rows) @ np.abs(x).astype(np.float64)).max(initial=0)
            assert (np.abs(out - rows @ x) <= limit).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", codecs.CODECS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 4, 13, 32])
def test_axpy(isa: str, codec: str, width: int, rows: int) -> None:
    w = weights((3, rows, width))
    data, plain = packed(codec, w), decoded(codec, w).astype(np.float64)
    for chosen in ([0], [2, 0], [0, 1, 2], [1, 1], []):
        listed = np.array(chosen, np.int32)
        c = np.random.default_rng(2).standard_normal((1, len(chosen), rows)).astype(np.float32)
        c[:, 1:] *= 100  # which would round away those of the first bundle, were they rounded together
        c = c.reshape(1, -1)
        y = np.linspace(-1, 1, width, dtype=np.float32)[None].copy()
        read = plain[listed].reshape(-1, width)
        expected = y + c @ read
        limit = TOLERANCES["axpy"] * (1 + np.abs(c) @ np.abs(read)).max()
        apart = y.copy()
        _core.axpy(isa, codec, data, rows, listed, c, y)
        assert (np.abs(y - expected) <= limit).all()
        for i in range(len(chosen)):
            part = np.ascontiguousarray(c[:, i * rows : (i + 1) * rows])
            _core.axpy(isa, codec, data, rows, listed[i : i + 1], part, apart)
        assert np.abs(y - apart).max() <= limit * TOLERANCES["axpy_bundles"] / TOLERANCES["axpy"]


def act(name: str, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    if name == "relu":
        return np.maximum(x, 0)
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    from math import erf

    return 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", codecs.CODECS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("width", [33, 576, 1030])
def test_mlp_over_all_some_and_no_neurons(
    isa: str, codec: str, gated: bool, activation: str, width: int
) -> None:
    neurons = 21
    random = np.random.default_rng(3)
    w = weights((neurons, 3 if gated else 2, width)) / np.float32(np.sqrt(width))
    x = random.standard_normal(width).astype(np.float32)
    gate_bias, up_bias = random.standard_normal((2, neurons)).astype(np.float32)
    rows = decoded(codec, w).astype(np.float64)
    hidden = rows[:, :-1] @ x
    if gated:
        hidden = act(activation, hidden[:, 0] + gate_bias) * (hidden[:, 1] + up_bias)
    else:
        hidden = act(activation, hidden[:, 0] + up_bias)
    data = packed(codec, w)
    lists = [None, np.arange(neurons), np.array([20, 3, 4, 11, 0]), np.array([7]), np.array([], int)]
    for chosen in lists:
        selected = None if chosen is None else chosen.astype(np.int32)
        y = np.ones(width, np.float32)
        _core.mlp(isa, codec, data, gated, activation, x, y, selected, gate_bias if gated else None, up_bias)
        index = np.arange(neurons) if chosen is None else chosen
        expected = 1 + hidden[index] @ rows[index, -1]
        limit = TOLERANCES["mlp"] * (1 + np.abs(hidden[index]) @ np.abs(rows[index, -1])).max()
        assert (np.abs(y - expected) <= limit).all()


@pytest.mark.parametrize("codec", codecs.CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_packing_refuses_what_is_not_finite(codec: str, bad: float) -> None:
    w = weights((1, 2, 64))
    w[0, 1, 37] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        packed(codec, w)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_packing_refuses_scales_beyond_float16(codec: str) -> None:
    with pytest.raises(ValueError, match="float16"):
        packed(codec, np.full((1, 1, 64), 1e9, np.float32) * np.linspace(-1, 1, 64, dtype=np.float32))


def test_wrong_sizes_are_refused_before_memory_is_read() -> None:
    data = packed("int8", weights((2, 3, 64)))
    x, out = np.zeros(64, np.float32), np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="out of range"):
        _core.dot("portable", "int8", data, 3, 2, 0, x, out)
    with pytest.raises(ValueError, match="out of range"):
        _core.dot("portable", "int8", data, 3, 1, 1, x, out)
    with pytest.raises(ValueError, match="out of range"):
        _core.dot("portable", "int8", data, 3, 0, 2**31 - 1, x, out)
    with pytest.raises(ValueError, match="whole number"):
        _core.dot("portable", "int8", data[:-1], 3, 0, 0, x, out)
    with pytest.raises(ValueError, match="out of range"):
        _core.mlp(
            "portable",
            "int8",
            data,
            True,
            "silu",
            x,
            np.zeros(64, np.float32),
            np.array([2], np.int32),
            None,
            None,
        )
