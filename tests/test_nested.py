"""Parts of int8 rows: packing against the NumPy twin bit for bit, and the kernels against float64 on its estimates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dejavu import _core, codecs, nested
from dejavu.errors import InputError
from test_rows import ISAS, POISON, packed, weights
from tolerances import TOLERANCES

WIDTHS = [1, 32, 48, 64, 96, 100, 512, 576, 1000, 2048, 2080]
CODECS = ["int8", "int4"]
LOW = 0
"""In place of leading bits: the others."""
CUTS = [("int8", 5), ("int8", 4), ("int8", 3), ("int4", 4)]
"""Codecs, and the leading bits that lie apart."""


class Nested:
    """Neurons in their two sections, at addresses that are not aligned to anything, beside their twin."""

    def __init__(self, codec: str, neurons: int, dots: int, width: int, leading: int = 4) -> None:
        self.codec, self.dots, self.neurons, self.width = codec, dots, neurons, width
        self.leading = leading
        self.weights = weights((neurons, dots + 1, width))
        self.encoded = codecs.encode(codec, self.weights.reshape(-1, width))
        sizes = _core.nested_bytes(codec, width, dots, neurons, leading)
        self.lead, self.rest = (np.full(size + 1, 0xA5, np.uint8)[1:] for size in sizes)
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

    def dot(self, isa: str, row: int, listed: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Row `row` of the listed neurons by the later bits; of int4 by all."""
        out = np.full(len(listed), POISON)
        sections = (self.lead, self.rest, self.dots, self.leading, self.neurons)
        _core.nested_dot(isa, self.codec, *sections, row, listed.astype(np.int32), x, out)
        return out

    def tile_dot(
        self, isa: str, bits: int, x: np.ndarray, begin: int = 0, end: int = 0, listed: tuple[int, ...] = ()
    ) -> np.ndarray:
        """All rows of a range of neurons, or of the listed tiles, by the leading bits: [neurons, dots]."""
        out = np.full((self.dots, 16 * len(listed) or end - begin), POISON)
        tiles = np.array(listed, np.int32)
        sections = (self.lead, self.dots, self.leading, self.neurons)
        _core.tile_dot(isa, *sections, bits, tiles, begin, end, x, out)
        return out.T


def readable(leading: int) -> tuple[int, ...]:
    return (2, 3, 4) if leading == 4 else (leading,)


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_the_twin_splits_without_loss(bits: int) -> None:
    encoded = codecs.encode("int8", weights((1, 3, 100))[0])
    high, low = nested.cut(encoded, bits)
    assert (int(high.max()), int(low.max())) == (2**bits - 1, 2 ** (8 - bits) - 1)
    np.testing.assert_array_equal(high.astype(int) * 2 ** (8 - bits) + low - 128, encoded.codes)
    scales = np.repeat(encoded.scales.astype(np.float32), codecs.GROUP, axis=1)[:, :100]
    rest = (low[:, :100].astype(np.float32) - 2 ** (7 - bits)) * scales
    found = nested.estimate(encoded, bits) + rest
    np.testing.assert_allclose(found, codecs.decode(encoded), atol=1e-5 * np.abs(found).max())


def test_more_leading_bits_are_nearer() -> None:
    encoded = codecs.encode("int8", weights((1, 8, 256))[0])
    exact = codecs.decode(encoded)
    errors = [np.abs(nested.estimate(encoded, bits) - exact).mean() for bits in nested.LEADING_BITS["int8"]]
    assert errors[0] > 1.8 * errors[1] > 0
    assert errors[1] > 1.8 * errors[2]
    assert errors[2] > 1.8 * errors[3]
    encoded = codecs.encode("int4", weights((1, 8, 256))[0])
    np.testing.assert_array_equal(nested.estimate(encoded, 4), codecs.decode(encoded))


def test_errors_of_the_twin() -> None:
    with pytest.raises(InputError, match=r"6 leading bits of int8 cannot be read; \(2, 3, 4, 5\) can"):
        nested.estimate(codecs.encode("int8", weights((1, 1, 64))[0]), 6)
    with pytest.raises(InputError, match=r"3 leading bits of int4 cannot be read; \(4,\) can"):
        nested.estimate(codecs.encode("int4", weights((1, 1, 64))[0]), 3)
    with pytest.raises(InputError, match="int8, int4"):
        nested.leading_bits("bf16")
    for codec, leading in (("int8", 2), ("int8", 6), ("int4", 3)):
        with pytest.raises(InputError, match=f"{codec} rows cannot be cut behind {leading} bits"):
            nested.check_cut(codec, leading)  # type: ignore[arg-type]


@given(
    halves=hnp.arrays(np.int8, (3, 32), elements=st.integers(-8, 7)),
    scales=hnp.arrays(np.float16, (3, 1), elements=st.floats(0, 64, width=16)),
    factor=st.sampled_from([1, 3, 5, 15]),
)
def test_estimates_that_stay(halves: np.ndarray, scales: np.ndarray, factor: int) -> None:
    odd = np.where((2 * halves + 1) % factor == 0, 2 * halves + 1, 15)
    odd[:, 0] = 15
    found = codecs.Encoded("int8", 32, (8 * odd).astype(np.int8), scales)
    rows = codecs.decode(found)
    if nested.is_settled_estimate(found):
        np.testing.assert_array_equal(nested.estimate(codecs.encode("int8", rows), 4), rows)
    assert (
        factor > 1
        or nested.is_settled_estimate(found)
        or (odd % 3 == 0).all(1).any()
        or (odd % 5 == 0).all(1).any()
    )
    assert not nested.is_settled_estimate(codecs.Encoded("int8", 32, np.zeros((1, 32), np.int8), scales[:1]))
    assert not nested.is_settled_estimate(codecs.Encoded("int8", 32, (4 * odd).astype(np.int8), scales))


def test_bits_that_lie_apart() -> None:
    apart = {(): 0, (3,): 3, (3, 3): 3, (4,): 4, (3, 4): 4, (2,): 4, (2, 3): 4, (5,): 5, (5, 5): 5}
    assert {used: nested.stored_bits(used) for used in apart} == apart
    with pytest.raises(InputError, match="sketches of 4, 5 bits in one plan"):
        nested.stored_bits([5, 4])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dots", [1, 2])
@pytest.mark.parametrize("leading", [3, 4, 5])
@pytest.mark.parametrize("neurons", [5, 32, 37])
def test_packing_int8_equals_the_twin_bit_for_bit(neurons: int, leading: int, width: int, dots: int) -> None:
    case = Nested("int8", neurons, dots, width, leading)
    shape = (neurons, dots + 1, -1)
    high, low = (part.reshape(shape)[:, :-1] for part in nested.cut(case.encoded, leading))
    scales = case.encoded.scales.reshape(shape)[:, :-1]
    tiles = [
        nested.tile(high[i : i + 16, row], leading, scales[i : i + 16, row])
        for i in range(0, neurons, 16)
        for row in range(dots)
    ]
    np.testing.assert_array_equal(case.lead, np.concatenate(tiles))
    codes = nested.pack(low.reshape(-1, low.shape[2]), 8 - leading).reshape(neurons, -1)
    expected = np.concatenate([codes, scales.reshape(neurons, -1).view(np.uint8)], axis=1)
    down = packed("int8", np.ascontiguousarray(case.weights[:, -1:]))
    rest = case.rest[: -len(down)].reshape(neurons, -1)
    np.testing.assert_array_equal(rest[:, : expected.shape[1]], expected)
    assert not rest[:, expected.shape[1] :].any()
    np.testing.assert_array_equal(case.rest[-len(down) :], down)
    found = np.empty((neurons, dots, width), np.int8)
    _core.join_nested(case.lead, case.rest, leading, found)
    np.testing.assert_array_equal(found, case.encoded.codes.reshape(shape)[:, :-1, :width])


@pytest.mark.parametrize("width", [48, 576])
def test_rows_of_int4_move_as_they_are(width: int) -> None:
    case = Nested("int4", 5, 2, width)
    np.testing.assert_array_equal(case.lead, packed("int4", np.ascontiguousarray(case.weights[:, :-1])))
    np.testing.assert_array_equal(case.rest, packed("int4", np.ascontiguousarray(case.weights[:, -1:])))


def reach(case: Nested, x: np.ndarray) -> float:
    """Of the magnitudes that are summed up: of the codes' offsets too, which are as large as the largest weight."""
    whole = np.abs(codecs.decode(case.encoded)).reshape(case.weights.shape)[:, :-1]
    return float(TOLERANCES["dot"] * (whole.max(axis=2) * np.abs(x).sum()).max())


def inputs(width: int) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal(width).astype(np.float32)
    x[::7] *= 50
    return x


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("codec", "leading"), CUTS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dots", [1, 2])
def test_later_bits_of_listed_neurons(isa: str, codec: str, leading: int, width: int, dots: int) -> None:
    case, x = Nested(codec, 21, dots, width, leading), inputs(width)
    exact = case.rows(LOW if codec == "int8" else 4) @ x.astype(np.float64)  # [neurons, dots]
    for listed in (np.array([20, 3, 3, 0, 11, 7, 19, 1, 2, 5]), np.array([], int)):
        for row in range(dots):
            assert (np.abs(case.dot(isa, row, listed, x) - exact[listed, row]) <= reach(case, x)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("leading", [3, 4, 5])
@pytest.mark.parametrize("width", [*WIDTHS, 4160])
@pytest.mark.parametrize("dots", [1, 2])
@pytest.mark.parametrize("neurons", [7, 86])
def test_leading_bits_of_ranges_and_tiles(
    isa: str, leading: int, width: int, dots: int, neurons: int
) -> None:
    case, x = Nested("int8", neurons, dots, width, leading), inputs(width)
    for bits in readable(leading):
        exact = case.rows(bits) @ x.astype(np.float64)  # [neurons, dots]
        for begin, end in ((0, neurons), (0, 0), (0, min(5, neurons)), (16, neurons)):
            if end >= begin:
                found = case.tile_dot(isa, bits, x, begin, end)
                assert (np.abs(found - exact[begin:end]) <= reach(case, x)).all()
        tiles = tuple(range(-(-neurons // 16)))[::-2]
        padded = np.zeros((16 * -(-neurons // 16), dots))  # rows that are missing are zero
        padded[:neurons] = exact
        expected = padded.reshape(-1, 16, dots)[list(tiles)].reshape(-1, dots)
        assert (np.abs(case.tile_dot(isa, bits, x, listed=tiles) - expected) <= reach(case, x)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("leading", [3, 4, 5])
def test_both_parts_are_the_exact_dot(isa: str, leading: int, width: int) -> None:
    case, x = Nested("int8", 9, 2, width, leading), inputs(width)
    data = packed("int8", case.weights)
    exact = np.empty((9, 2), np.float32)
    for neuron in range(9):
        _core.dot(isa, "int8", data, 3, neuron, 0, x, exact[neuron])
    later = np.stack([case.dot(isa, row, np.arange(9), x) for row in range(2)], axis=1)
    assert (np.abs(case.tile_dot(isa, leading, x, 0, 9) + later - exact) <= reach(case, x)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_three_bits_of_four_are_those_of_three(isa: str) -> None:
    three, four = (Nested("int8", 9, 2, 576, n).tile_dot(isa, 3, inputs(576), 0, 9) for n in (3, 4))
    np.testing.assert_array_equal(three, four)


@pytest.mark.parametrize("isa", ISAS)
def test_a_tile_is_the_same_wherever_it_is_read(isa: str) -> None:
    case, x = Nested("int8", 86, 2, 576), inputs(576)
    whole = case.tile_dot(isa, 4, x, 0, 86)
    np.testing.assert_array_equal(case.tile_dot(isa, 4, x, 32, 70), whole[32:70])
    np.testing.assert_array_equal(
        case.tile_dot(isa, 4, x, listed=(3, 0)), whole[[*range(48, 64), *range(16)]]
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("leading", [3, 4, 5])
def test_some_rows_of_tiles(isa: str, leading: int) -> None:
    """Alone, gate and up are what they are together."""
    case, x = Nested("int8", 86, 2, 576, leading), inputs(576)
    both = case.tile_dot(isa, leading, x, 0, 86)
    listed = case.tile_dot(isa, leading, x, listed=(3, 0))
    sections = (case.lead, case.dots, case.leading, case.neurons)
    for row in (0, 1):
        out = np.full((1, 86), POISON)
        _core.tile_dot(isa, *sections, leading, np.zeros(0, np.int32), 0, 86, x, out, row)
        np.testing.assert_array_equal(out[0], both[:, row])
        out = np.full((1, 32), POISON)
        _core.tile_dot(isa, *sections, leading, np.array([3, 0], np.int32), 0, 0, x, out, row)
        np.testing.assert_array_equal(out[0], listed[:, row])
    for first, asked in ((1, 2), (-1, 1), (2, 1), (0, 3)):
        with pytest.raises(ValueError, match="another size"):
            _core.tile_dot(
                isa,
                *sections,
                leading,
                np.zeros(0, np.int32),
                0,
                86,
                x,
                np.zeros((asked, 86), np.float32),
                first,
            )


def test_wrong_sizes_are_refused_before_memory_is_read() -> None:
    case = Nested("int8", 3, 2, 64)
    x, one = np.zeros(64, np.float32), np.array([0])
    case.dot("portable", 0, one, x)
    with pytest.raises(ValueError, match="neuron out of range"):
        case.dot("portable", 0, np.array([3]), x)
    with pytest.raises(ValueError, match="row or out"):
        case.dot("portable", 2, one, x)
    for begin, end in ((1, 3), (0, 4), (-16, 0), (16, 3)):
        with pytest.raises(ValueError, match=r"not a range|shape|negative"):
            case.tile_dot("portable", 4, x, begin, end)
    with pytest.raises(ValueError, match="tile out of range"):
        case.tile_dot("portable", 4, x, listed=(1,))
    for bits in (1, 5):
        with pytest.raises(ValueError, match="bits out of range"):
            case.tile_dot("portable", bits, x, 0, 3)
    for leading, bits in ((3, 2), (3, 4), (5, 4), (5, 6)):
        with pytest.raises(ValueError, match="bits out of range"):
            Nested("int8", 3, 2, 64, leading).tile_dot("portable", bits, x, 0, 3)
    case.lead = case.lead[64:]
    with pytest.raises(ValueError, match="bytes instead of"):
        case.dot("portable", 0, one, x)
    with pytest.raises(ValueError, match="bytes instead of"):
        case.tile_dot("portable", 4, x, 0, 3)
    with pytest.raises(ValueError, match="only int8 and int4"):
        _core.nested_bytes("bf16", 64, 2, 1, 4)
    with pytest.raises(ValueError, match="behind 3, 4 or 5"):
        _core.nested_bytes("int8", 64, 2, 1, 6)
