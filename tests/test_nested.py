"""Parts of int8 rows: packing against the NumPy twin bit for bit, and the kernels against float64 on its estimates."""

from __future__ import annotations

import numpy as np
import pytest

from dejavu import _core, codecs, nested
from dejavu.errors import InputError
from test_rows import ISAS, POISON, packed, weights
from tolerances import TOLERANCES

WIDTHS = [1, 32, 48, 64, 96, 100, 512, 576, 1000, 2048, 2080]
CODECS = ["int8", "int4"]
LOW = 0
"""In place of leading bits: the others."""
CUTS = [("int8", 4), ("int8", 3), ("int4", 4)]
"""Codecs, and the leading bits that lie apart."""


class Nested:
    """Neurons in their two sections, at addresses that are not aligned to anything, beside their twin."""

    def __init__(self, codec: str, neurons: int, dots: int, width: int, leading: int = 4) -> None:
        self.codec, self.dots, self.neurons, self.width = codec, dots, neurons, width
        self.leading = leading
        self.weights = weights((neurons, dots + 1, width))
        self.encoded = codecs.encode(codec, self.weights.reshape(-1, width))
        sizes = _core.nested_bytes(codec, width, dots, leading)
        self.lead, self.rest = (np.full(size * neurons + 1, 0xA5, np.uint8)[1:] for size in sizes)
        _core.split_nested(codec, packed(codec, self.weights), width, dots, leading, self.lead, self.rest, 2)

    def rows(self, bits: int) -> np.ndarray:
        """float64 [neurons, dots, width]: what the leading bits say, or what the others add to those that lie apart."""
        if bits == LOW:
            rows = codecs.decode(self.encoded).astype(np.float64) - nested.estimate(
                self.encoded, self.leading
            )
        else:
            rows = nested.estimate(self.encoded, bits).astype(np.float64)
        return rows.reshape(self.weights.shape)[:, :-1]

    def dot(self, isa: str, bits: int, row: int, listed: np.ndarray, x: np.ndarray) -> np.ndarray:
        n = len(listed) if row >= 0 else int(listed[1] - listed[0]) * self.dots
        out = np.full(n, POISON)
        listed = listed.astype(np.int32)
        sections = (self.lead, self.rest, self.dots, self.leading)
        _core.nested_dot(isa, self.codec, *sections, bits, row, listed, x, out)
        return out if row >= 0 else out.reshape(-1, self.dots)


def readable(codec: str, leading: int) -> list[int]:
    bits = nested.LEADING_BITS[codec] if leading == 4 else (leading,)
    return [*bits, *([LOW] if codec == "int8" else [])]


@pytest.mark.parametrize("bits", [3, 4])
def test_the_twin_splits_without_loss(bits: int) -> None:
    encoded = codecs.encode("int8", weights((1, 3, 100))[0])
    high, low = nested.cut(encoded, bits)
    assert (int(high.max()), int(low.max())) == (2**bits - 1, 2 ** (8 - bits) - 1)
    np.testing.assert_array_equal(high.astype(int) * 2 ** (8 - bits) + low - 128, encoded.codes)
    scales = np.repeat(encoded.scales.astype(np.float32), codecs.GROUP, axis=1)[:, :100]
    rest = (low[:, :100].astype(np.float32) - (2 ** (8 - bits) - 1) / 2) * scales
    found = nested.estimate(encoded, bits) + rest
    np.testing.assert_allclose(found, codecs.decode(encoded), atol=1e-5 * np.abs(found).max())


def test_more_leading_bits_are_nearer() -> None:
    encoded = codecs.encode("int8", weights((1, 8, 256))[0])
    exact = codecs.decode(encoded)
    errors = [np.abs(nested.estimate(encoded, bits) - exact).mean() for bits in nested.LEADING_BITS["int8"]]
    assert errors[0] > 1.8 * errors[1] > 0
    assert errors[1] > 1.8 * errors[2]
    encoded = codecs.encode("int4", weights((1, 8, 256))[0])
    np.testing.assert_array_equal(nested.estimate(encoded, 4), codecs.decode(encoded))


def test_errors_of_the_twin() -> None:
    with pytest.raises(InputError, match=r"5 leading bits of int8 cannot be read; \(2, 3, 4\) can"):
        nested.estimate(codecs.encode("int8", weights((1, 1, 64))[0]), 5)
    with pytest.raises(InputError, match=r"3 leading bits of int4 cannot be read; \(4,\) can"):
        nested.estimate(codecs.encode("int4", weights((1, 1, 64))[0]), 3)
    with pytest.raises(InputError, match="int8, int4"):
        nested.leading_bits("bf16")
    for codec, leading in (("int8", 2), ("int8", 5), ("int4", 3)):
        with pytest.raises(InputError, match=f"{codec} rows cannot be cut behind {leading} bits"):
            nested.check_cut(codec, leading)  # type: ignore[arg-type]


def test_bits_that_lie_apart() -> None:
    assert [nested.stored_bits(used) for used in ([], [3], [3, 3], [4], [3, 4], [2], [2, 3])] == [
        0,
        3,
        3,
        4,
        4,
        4,
        4,
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dots", [1, 2])
@pytest.mark.parametrize("leading", [3, 4])
def test_packing_int8_equals_the_twin_bit_for_bit(leading: int, width: int, dots: int) -> None:
    case = Nested("int8", 5, dots, width, leading)
    parts = zip(nested.cut(case.encoded, leading), (leading, 8 - leading), strict=True)
    high, low = (nested.pack(part, bits).reshape(5, dots + 1, -1)[:, :-1] for part, bits in parts)
    scales = case.encoded.scales.view(np.uint8).reshape(5, dots + 1, -1)[:, :-1]
    for section, half in ((case.lead, high), (case.rest, low)):
        expected = np.concatenate([half.reshape(5, -1), scales.reshape(5, -1)], axis=1)
        np.testing.assert_array_equal(section.reshape(5, -1)[:, : expected.shape[1]], expected)
    assert case.lead.size == 5 * (high[0].size + scales[0].size)
    down = packed("int8", np.ascontiguousarray(case.weights[:, -1:])).reshape(5, -1)
    rest = case.rest.reshape(5, -1)[:, expected.shape[1] :]
    used = min(rest.shape[1], down.shape[1])
    np.testing.assert_array_equal(rest[:, :used], down[:, :used])
    assert not rest[:, used:].any()
    assert not down[:, used:].any()
    codes = np.empty((5, dots, width), np.int8)
    _core.join_nested(case.lead, case.rest, leading, codes)
    whole = case.encoded.codes.reshape(5, dots + 1, -1)[:, :-1, :width]
    np.testing.assert_array_equal(codes, whole)


@pytest.mark.parametrize("width", [48, 576])
def test_rows_of_int4_move_as_they_are(width: int) -> None:
    case = Nested("int4", 5, 2, width)
    np.testing.assert_array_equal(case.lead, packed("int4", np.ascontiguousarray(case.weights[:, :-1])))
    np.testing.assert_array_equal(case.rest, packed("int4", np.ascontiguousarray(case.weights[:, -1:])))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("codec", "leading"), CUTS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dots", [1, 2])
def test_dots_of_all_some_and_no_neurons(isa: str, codec: str, leading: int, width: int, dots: int) -> None:
    case = Nested(codec, 21, dots, width, leading)
    x = np.random.default_rng(1).standard_normal(width).astype(np.float32)
    x[::7] *= 50
    whole = np.abs(codecs.decode(case.encoded)).reshape(case.weights.shape)[:, :-1]
    # Of the magnitudes that are summed up: of the codes' offsets too, which are as large as the largest weight.
    reach = TOLERANCES["dot"] * (whole.max(axis=2) * np.abs(x).sum()).max()
    for bits in readable(codec, leading):
        exact = case.rows(bits) @ x.astype(np.float64)  # [neurons, dots]
        for begin, end in ((0, 21), (3, 20), (7, 7)):
            found = case.dot(isa, bits, -1, np.array([begin, end]), x)
            assert (np.abs(found - exact[begin:end]) <= reach).all()
        for listed in (np.array([20, 3, 3, 0, 11, 7, 19, 1, 2, 5]), np.array([], int)):
            for row in range(dots):
                assert (np.abs(case.dot(isa, bits, row, listed, x) - exact[listed, row]) <= reach).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("leading", [3, 4])
def test_both_parts_are_the_exact_dot(isa: str, leading: int, width: int) -> None:
    case = Nested("int8", 9, 2, width, leading)
    data = packed("int8", case.weights)
    x = np.random.default_rng(1).standard_normal(width).astype(np.float32)
    exact = np.empty((9, 2), np.float32)
    for neuron in range(9):
        _core.dot(isa, "int8", data, 3, neuron, 0, x, exact[neuron])
    found = sum(case.dot(isa, bits, -1, np.array([0, 9]), x) for bits in (leading, LOW))
    reach = TOLERANCES["dot"] * (np.abs(case.weights[:, :-1]).max(axis=2) * np.abs(x).sum()).max()
    assert (np.abs(found - exact) <= reach).all()


@pytest.mark.parametrize("isa", ISAS)
def test_three_bits_of_four_are_those_of_three(isa: str) -> None:
    cases = [Nested("int8", 9, 2, 576, leading) for leading in (3, 4)]
    x, all_of_them = np.random.default_rng(1).standard_normal(576).astype(np.float32), np.array([0, 9])
    three, four = (case.dot(isa, 3, -1, all_of_them, x) for case in cases)
    np.testing.assert_array_equal(three, four)


@pytest.mark.parametrize("leading", [3, 4])
def test_leading_bits_of_plain_rows(leading: int) -> None:
    w = weights((3, 16, 100))  # as the head has them: sixteen to a bundle
    lead = np.empty(_core.leading_bytes(100, 16, leading) * 3, np.uint8)
    _core.leading_parts(packed("int8", w), 100, 16, leading, lead)
    encoded = codecs.encode("int8", w.reshape(48, 100))
    codes = nested.pack(nested.cut(encoded, leading)[0], leading).reshape(3, -1)
    expected = np.concatenate([codes, encoded.scales.view(np.uint8).reshape(3, -1)], axis=1)
    np.testing.assert_array_equal(lead.reshape(3, -1), expected)


def test_wrong_sizes_are_refused_before_memory_is_read() -> None:
    case = Nested("int8", 3, 2, 64)
    x = np.zeros(64, np.float32)
    one = np.array([0])
    case.dot("portable", 4, 0, one, x)
    with pytest.raises(ValueError, match="neuron out of range"):
        case.dot("portable", 4, 0, np.array([3]), x)
    with pytest.raises(ValueError, match="not a range"):
        case.dot("portable", 4, -1, np.array([1, 4]), x)
    with pytest.raises(ValueError, match="row or out"):
        case.dot("portable", 4, 2, one, x)
    for bits in (1, 5):
        with pytest.raises(ValueError, match="bits out of range"):
            case.dot("portable", bits, 0, one, x)
    for bits in (2, 4):
        with pytest.raises(ValueError, match="bits out of range"):
            Nested("int8", 3, 2, 64, 3).dot("portable", bits, 0, one, x)
    with pytest.raises(ValueError, match="bits out of range"):
        Nested("int4", 3, 2, 64).dot("portable", 3, 0, one, x)
    case.lead = case.lead[64:]
    with pytest.raises(ValueError, match="bytes instead of"):
        case.dot("portable", 4, 0, one, x)
    with pytest.raises(ValueError, match="only int8 and int4"):
        _core.nested_bytes("bf16", 64, 2, 4)
    with pytest.raises(ValueError, match="behind 3 or 4"):
        _core.nested_bytes("int8", 64, 2, 5)
