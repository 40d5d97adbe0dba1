"""Kernels for several tokens and for lists of bundles against those for one token and a range, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavu import _core, codecs
from row_samples import ISAS, POISON, WIDTHS, Walled, decoded, packed, weights
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENS = range(1, 9)
LISTS = [[20, 3, 4, 11, 0], list(range(21)), [7], []]

each_kernel = pytest.mark.parametrize(
    ("isa", "codec"), [(isa, codec) for isa in ISAS for codec in codecs.CODECS]
)
each_width = pytest.mark.parametrize("width", WIDTHS)


def inputs(tokens: int, width: int) -> np.ndarray:
    x = np.random.default_rng(tokens).standard_normal((tokens, width)).astype(np.float32)
    x[:, ::7] *= 50  # outliers, as in real activations
    x[-1, : width // 2] = 0
    return x


@each_kernel
@each_width
def test_dot_many_gives_each_token_the_bits_of_dot(isa: str, codec: str, width: int) -> None:
    w = weights((2, 23, width))
    data = packed(codec, w)
    for tokens in TOKENS:
        x = inputs(tokens, width)
        for first, n in ((0, 23), (3, 8), (22, 1), (5, 0)):
            out = np.full((tokens, n), POISON)
            _core.dot_many(isa, codec, data, 23, 1, first, x, out)
            for t in range(tokens):
                one = np.full(n, POISON)
                _core.dot(isa, codec, data, 23, 1, first, np.ascontiguousarray(x[t]), one)
                np.testing.assert_array_equal(out[t], one)


@each_kernel
@each_width
def test_axpy_gives_each_of_several_tokens_the_bits_of_one(isa: str, codec: str, width: int) -> None:
    for tokens in TOKENS:
        for rows, chosen in ((71, [1]), (33, [1, 0]), (4, [0, 1, 0]), (1, [1]), (3, [])):
            data, listed = packed(codec, weights((2, rows, width))), np.array(chosen, np.int32)
            c = inputs(tokens, max(1, rows * len(chosen)))[:, : rows * len(chosen)]
            c[0] = 0
            y = np.repeat(np.linspace(-1, 1, width, dtype=np.float32)[None], tokens, 0)
            expected = y.copy()
            _core.axpy(isa, codec, data, rows, listed, np.ascontiguousarray(c), y)
            for t in range(tokens):
                part = np.ascontiguousarray(c[t : t + 1])
                _core.axpy(isa, codec, data, rows, listed, part, expected[t : t + 1])
            np.testing.assert_array_equal(y, expected)


@each_kernel
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("width", [33, 576, 1030])
def test_mlp_many_without_masks_gives_each_token_the_bits_of_mlp(
    isa: str, codec: str, gated: bool, width: int
) -> None:
    w = weights((21, 3 if gated else 2, width)) / np.float32(np.sqrt(width))
    data = packed(codec, w)
    gate_bias, up_bias = np.random.default_rng(3).standard_normal((2, 21)).astype(np.float32)
    for tokens in TOKENS:
        x = inputs(tokens, width)
        for chosen in [None, *LISTS]:
            selected = None if chosen is None else np.array(chosen, np.int32)
            masks = None if chosen is None else np.full(len(chosen), (1 << tokens) - 1, np.uint8)
            y = np.ones((tokens, width), np.float32)
            expected = y.copy()
            biases = (gate_bias if gated else None, up_bias)
            _core.mlp_many(isa, codec, data, gated, "silu", x, y, selected, masks, *biases)
            for t in range(tokens):
                one = np.ascontiguousarray(x[t])
                _core.mlp(isa, codec, data, gated, "silu", one, expected[t], selected, *biases)
            np.testing.assert_array_equal(y, expected)


@each_kernel
@pytest.mark.parametrize("tokens", TOKENS)
def test_masked_neurons_count_as_zero(isa: str, codec: str, tokens: int) -> None:
    width, neurons = 600, 37
    random = np.random.default_rng(tokens)
    w = weights((neurons, 3, width)) / np.float32(np.sqrt(width))
    data = packed(codec, w)
    rows = decoded(codec, w).astype(np.float64)
    x = random.standard_normal((tokens, width)).astype(np.float32)
    hidden = np.maximum(x @ rows[:, 0].T, 0) * (x @ rows[:, 1].T)  # [tokens, neurons]
    selected = random.permutation(neurons).astype(np.int32)[:30]
    for masks in (np.zeros(30, np.uint8), random.integers(0, 1 << tokens, 30).astype(np.uint8)):
        used = (masks[None] >> np.arange(tokens, dtype=np.uint8)[:, None] & 1).astype(np.float64)
        y = np.ones((tokens, width), np.float32)
        _core.mlp_many(isa, codec, data, True, "relu", x, y, selected, masks)
        h = hidden[:, selected] * used
        limit = TOLERANCES["mlp"] * (1 + np.abs(h) @ np.abs(rows[selected, 2])).max(1, keepdims=True)
        assert (np.abs(y - (1 + h @ rows[selected, 2])) <= limit).all()
        np.testing.assert_array_equal(y[~used.any(1)], 1)


@each_kernel
@each_width
def test_lists_give_the_bits_of_rows_one_by_one(isa: str, codec: str, width: int) -> None:
    w = weights((21, 3, width))
    data = packed(codec, w)
    x, c = inputs(1, width), inputs(1, 21)
    in_order = packed(codec, np.ascontiguousarray(w.reshape(1, 63, width)))  # all rows as one bundle
    for chosen in LISTS:
        listed, n = np.array(chosen, np.int32), len(chosen)
        for first, rows in (1, 1), (0, 2), (0, 3):
            out, expected = np.full((1, n * rows), POISON), np.full((1, 63), POISON)
            _core.dot_list(isa, codec, data, 3, first, listed, x, out)
            _core.dot_many(isa, codec, in_order, 63, 0, 0, x, expected)
            np.testing.assert_array_equal(
                out[0], expected.reshape(21, 3)[chosen, first : first + rows].ravel()
            )

        rows = np.array([3 * i + i % 3 for i in chosen], np.int32)  # counted through all bundles
        out = np.full((1, n), POISON)
        _core.dot_picked(isa, codec, data, 3, rows, x, out)
        _core.dot_many(isa, codec, in_order, 63, 0, 0, x, expected := np.full((1, 63), POISON))
        np.testing.assert_array_equal(out[0], expected[0, rows])

        part = np.ascontiguousarray(c[:, :n])
        y = np.ones((1, width), np.float32)
        expected = y.copy()
        _core.axpy_list(isa, codec, data, 3, 1, listed, part, y)
        if n:
            alone = packed(codec, np.ascontiguousarray(w[chosen, 1][None]))
            _core.axpy(isa, codec, alone, n, np.zeros(1, np.int32), part, expected)
        np.testing.assert_array_equal(y, expected)


@each_kernel
@pytest.mark.parametrize("width", [1, 33, 576, 1100])
@pytest.mark.parametrize("skew", [1, 7])
def test_rows_anywhere_and_nothing_beside(isa: str, codec: str, width: int, skew: int) -> None:
    """Weights, inputs and outputs at other addresses: the same bits, and nothing is written next to an output."""
    neurons, tokens = 21, 3
    w = weights((neurons, 3, width)) / np.float32(np.sqrt(width))
    x, c = inputs(tokens, width), inputs(tokens, neurons)
    chosen, picked = np.array([20, 3, 4, 11, 0], np.int32), np.array([62, 0, 7, 31], np.int32)
    masks = np.array([7, 1, 2, 4, 3], np.uint8)
    bias = np.linspace(-1, 1, neurons, dtype=np.float32)

    def run(data: np.ndarray, at: Walled | Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
        def out(*shape: int) -> np.ndarray:
            outs.append(at(np.full(shape, 0.5, np.float32)))
            return outs[-1]

        outs: list[np.ndarray] = []
        many, one = at(x), at(x[0])
        _core.decode_rows(isa, codec, data, width, 3, out(neurons, 3, width))
        _core.dot(isa, codec, data, 3, 1, 2, one, out(17))
        _core.dot_many(isa, codec, data, 3, 1, 2, many, out(tokens, 17))
        _core.dot_list(isa, codec, data, 3, 1, at(chosen), at(x[:1]), out(1, 10))
        _core.dot_picked(isa, codec, data, 3, at(picked), at(x[:1]), out(1, 4))
        _core.axpy(isa, codec, data, 3, at(chosen), at(c[:1, :15]), out(1, width))
        _core.axpy(isa, codec, data, 3, at(chosen), at(c[:, :15]), out(tokens, width))
        _core.axpy_list(isa, codec, data, 3, 2, at(chosen), at(c[:1, :5]), out(1, width))
        biases = at(bias), at(-bias)
        for listed in (None, at(chosen)):
            _core.mlp(isa, codec, data, True, "silu", one, out(width), listed, *biases)
            which = None if listed is None else masks
            _core.mlp_many(isa, codec, data, True, "silu", many, out(tokens, width), listed, which, *biases)
        return outs

    expected = run(packed(codec, w), lambda values: values.copy())
    walled = Walled(skew)
    # Rows of f32 begin at a float, the others at two bytes.
    found = run(packed(codec, w, skew * (4 if codec == "f32" else 2)), walled)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    walled.check()


def test_wrong_sizes_are_refused_before_memory_is_read() -> None:
    data = packed("int8", weights((2, 3, 64)))
    x, out = np.zeros((2, 64), np.float32), np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="out of range"):
        _core.dot_many("portable", "int8", data, 3, 1, 1, x, out)
    with pytest.raises(ValueError, match="tokens"):
        _core.dot_many("portable", "int8", data, 3, 0, 0, x, out[:1])
    with pytest.raises(ValueError, match="tokens"):
        _core.axpy(
            "portable",
            "int8",
            data,
            3,
            np.zeros(1, np.int32),
            np.zeros((9, 3), np.float32),
            np.zeros((9, 64), np.float32),
        )
    with pytest.raises(ValueError, match="out of range"):
        _core.axpy("portable", "int8", data, 3, np.array([2], np.int32), np.zeros((1, 3), np.float32), x[:1])
    with pytest.raises(ValueError, match="one per row"):
        _core.axpy("portable", "int8", data, 3, np.array([1], np.int32), np.zeros((1, 4), np.float32), x[:1])
    with pytest.raises(ValueError, match="out of range"):
        _core.dot_list(
            "portable", "int8", data, 3, 2, np.zeros(3, np.int32), x[:1], np.zeros((1, 6), np.float32)
        )
    for picked in ([6], [-1]):
        with pytest.raises(ValueError, match="does not exist"):
            _core.dot_picked(
                "portable", "int8", data, 3, np.array(picked, np.int32), x[:1], np.zeros((1, 1), np.float32)
            )
    with pytest.raises(ValueError, match="out of range"):
        _core.axpy_list("portable", "int8", data, 3, 0, np.array([0, 2, 1], np.int32), out[:1], x[:1])
    with pytest.raises(ValueError, match="coefficients are not"):
        _core.axpy_list("portable", "int8", data, 3, 0, np.array([0, 1, 1], np.int32), out, x)
    with pytest.raises(ValueError, match="masks"):
        _core.mlp_many(
            "portable", "int8", data, True, "relu", x, x.copy(), np.zeros(2, np.int32), np.zeros(1, np.uint8)
        )
