"""Bit planes: packing against the NumPy twin bit for bit, and the kernels against float64 on the twin's estimates."""

from __future__ import annotations

import numpy as np
import pytest

from dejavu import _core, codecs, nested
from dejavu.errors import InputError
from test_rows import ISAS, POISON, packed, relative, weights
from tolerances import TOLERANCES

WIDTHS = [1, 32, 48, 64, 96, 100, 512, 576, 1000, 2048, 2080]
CODECS = ["int8", "int4"]


class Nested:
    """Neurons in their two sections, at addresses that are not aligned to anything, beside their twin."""

    def __init__(self, codec: str, neurons: int, dots: int, width: int) -> None:
        self.codec, self.dots, self.neurons, self.width = codec, dots, neurons, width
        self.weights = weights((neurons, dots + 1, width))
        self.encoded = codecs.encode(codec, self.weights.reshape(-1, width))
        self.sizes = part_bytes(codec, dots, neurons, width)
        self.section = np.full(sum(-(-size // 64) * 64 for size in self.sizes), 0xA5, np.uint8)
        self.bundles = np.full(_core.nested_bundle_bytes(codec, width, dots) * neurons, 0xA5, np.uint8)
        data = packed(codec, self.weights)
        _core.split_planes(codec, data, width, dots + 1, dots, self.section, self.bundles, 2)

    def estimate(self, planes: int) -> np.ndarray:
        """float64 [neurons, dots, width]; no planes: zero."""
        if planes == 0:
            return np.zeros((self.neurons, self.dots, self.width))
        rows = nested.estimate(self.encoded, sum(nested.WIDTHS[self.codec][:planes]))
        return rows.reshape(self.weights.shape)[:, :-1].astype(np.float64)

    def dot(
        self, isa: str, first: int, last: int, x: np.ndarray, units: np.ndarray | None, begin: int, end: int
    ) -> np.ndarray:
        out = np.full((end - begin) * self.dots, POISON)
        _core.planes_dot(
            isa,
            self.codec,
            self.section,
            self.bundles,
            self.dots,
            self.neurons,
            units,
            begin,
            end,
            first,
            last,
            x,
            out,
        )
        return out.reshape(-1, self.dots)


def part_bytes(codec: str, rows: int, count: int, width: int) -> list[int]:
    """Bytes of the streamed planes and of the scales."""
    chunks, groups = -(-width // nested.CHUNK), -(-width // codecs.GROUP)
    planes = [8 * bits * chunks * rows * count for bits in nested.WIDTHS[codec][: nested.LEADING]]
    return [*planes, groups * (2 if codec == "int8" else 4) * rows * count]


def test_the_twin_splits_and_merges_without_loss() -> None:
    encoded = codecs.encode("int8", weights((1, 3, 100))[0])
    planes = nested.split(encoded)
    assert [int(plane.max()) for plane in planes] == [3, 1, 1, 15]
    codes = nested.merge("int8", planes)
    np.testing.assert_array_equal(codes.astype(int) - 128, encoded.codes)
    for codec in CODECS:
        encoded = codecs.encode(codec, weights((1, 3, 100))[0])
        np.testing.assert_array_equal(
            nested.estimate(encoded, sum(nested.WIDTHS[codec])), codecs.decode(encoded)
        )


@pytest.mark.parametrize("codec", CODECS)
def test_more_leading_bits_are_nearer(codec: str) -> None:
    rows = weights((1, 8, 256))[0]
    encoded = codecs.encode(codec, rows)
    exact = codecs.decode(encoded)
    errors = [np.abs(nested.estimate(encoded, bits) - exact).mean() for bits in nested.BITS]
    assert errors[0] > 1.8 * errors[1] > 0
    assert errors[1] > 1.8 * errors[2]


def test_errors_of_the_twin() -> None:
    encoded = codecs.encode("int8", weights((1, 1, 64))[0])
    with pytest.raises(InputError, match=r"\[2, 3, 4, 8\]"):
        nested.estimate(encoded, 5)
    with pytest.raises(InputError, match="int8, int4"):
        nested.split(codecs.encode("bf16", weights((1, 1, 64))[0]))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dots", [1, 2])
def test_packing_equals_the_twin_bit_for_bit(codec: str, width: int, dots: int) -> None:
    case = Nested(codec, 5, dots, width)
    planes = [plane.reshape(5, dots + 1, -1)[:, :-1].reshape(5, -1) for plane in nested.pack(case.encoded)]
    assert case.encoded.scales is not None
    scales = case.encoded.scales.reshape(5, dots + 1, 1, -1)
    if case.encoded.mins is not None:
        scales = np.concatenate([scales, case.encoded.mins.reshape(scales.shape)], axis=2)
    scales = scales[:, :-1]
    at = 0
    for size, expected in zip(case.sizes, [*planes[:3], scales], strict=True):
        np.testing.assert_array_equal(
            case.section[at : at + size], np.ascontiguousarray(expected).view(np.uint8).reshape(-1)
        )
        assert (case.section[at + size : -(-(at + size) // 64) * 64] == 0).all()
        at = -(-(at + size) // 64) * 64
    assert at == len(case.section)
    bundles = case.bundles.reshape(5, -1)
    down = packed(codec, np.ascontiguousarray(case.weights[:, -1:])).reshape(5, -1)
    size = 0
    if codec == "int8":
        size = planes[3].shape[1]
        np.testing.assert_array_equal(bundles[:, :size], planes[3])
    used = min(bundles.shape[1] - size, down.shape[1])
    np.testing.assert_array_equal(bundles[:, size : size + used], down[:, :used])
    assert not down[:, used:].any()
    assert not bundles[:, size + used :].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("width", WIDTHS)
def test_decoding_equals_the_twin(isa: str, codec: str, width: int) -> None:
    case = Nested(codec, 3, 2, width)
    out = np.full((3, 2, width), POISON)
    _core.planes_decode(isa, codec, case.section, case.bundles, out)
    exact = codecs.decode(case.encoded).reshape(case.weights.shape)[:, :-1]
    assert relative(out, exact) <= TOLERANCES["decode_rows"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dots", [1, 2])
def test_dot_over_all_some_and_no_units(isa: str, codec: str, width: int, dots: int) -> None:
    neurons = 21
    case = Nested(codec, neurons, dots, width)
    x = np.random.default_rng(1).standard_normal(width).astype(np.float32)
    x[::7] *= 50
    estimates = [case.estimate(n) for n in range(len(nested.WIDTHS[codec]) + 1)]
    lists = [None, np.array([20, 3, 3, 0, 11, 7, 19, 1, 2, 5], np.int32), np.array([], np.int32)]
    for first in range(len(estimates) - 1):
        for last in range(first + 1, len(estimates)):
            rows = estimates[last] - estimates[first]
            limit = TOLERANCES["dot"] * (np.abs(rows) @ np.abs(x).astype(np.float64)).max()
            for units in lists:
                index = np.arange(neurons) if units is None else units
                for begin, end in ((0, len(index)), (len(index) // 3, len(index) // 3 + len(index) // 2)):
                    found = case.dot(isa, first, last, x, units, begin, end)
                    assert (np.abs(found - (rows @ x)[index[begin:end]]) <= limit).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("leading", [1, 2, 3])
def test_score_and_rest_are_the_exact_dot(isa: str, codec: str, width: int, leading: int) -> None:
    case = Nested(codec, 9, 2, width)
    data = packed(codec, case.weights)
    x = np.random.default_rng(1).standard_normal(width).astype(np.float32)
    exact = np.empty((9, 2), np.float32)
    for neuron in range(9):
        _core.dot(isa, codec, data, 3, neuron, 0, x, exact[neuron])
    found = case.dot(isa, 0, leading, x, None, 0, 9)
    if leading < len(nested.WIDTHS[codec]):
        found += case.dot(isa, leading, len(nested.WIDTHS[codec]), x, None, 0, 9)
    limit = TOLERANCES["dot"] * (np.abs(case.weights[:, :-1]) @ np.abs(x)).max()
    assert (np.abs(found - exact) <= limit).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codec", CODECS)
def test_a_section_of_rows_with_all_planes(isa: str, codec: str) -> None:
    w = weights((3, 16, 100))  # as the head has them: plain rows, sixteen to a bundle
    chunks, groups = 2, 4
    sizes = [8 * bits * chunks * 48 for bits in nested.WIDTHS[codec]] + [
        groups * (2 if codec == "int8" else 4) * 48
    ]
    section = np.empty(sum(-(-size // 64) * 64 for size in sizes), np.uint8)
    _core.split_planes(codec, packed(codec, w), 100, 16, 16, section, None, 1)
    out = np.full((48, 1, 100), POISON)
    _core.planes_decode(isa, codec, section, None, out)
    assert relative(out, codecs.roundtrip(codec, w.reshape(48, 100))[:, None]) <= TOLERANCES["decode_rows"]


def test_wrong_sizes_are_refused_before_memory_is_read() -> None:
    case = Nested("int8", 3, 2, 64)
    x = np.zeros(64, np.float32)
    one = np.array([0], np.int32)
    case.dot("portable", 0, 1, x, one, 0, 1)
    with pytest.raises(ValueError, match="unit out of range"):
        case.dot("portable", 0, 1, x, np.array([3], np.int32), 0, 1)
    with pytest.raises(ValueError, match="begin and end"):
        case.dot("portable", 0, 1, x, one, 0, 2)
    with pytest.raises(ValueError, match="planes out of range"):
        case.dot("portable", 1, 5, x, one, 0, 1)
    with pytest.raises(ValueError, match="planes out of range"):
        case.dot("portable", 2, 2, x, one, 0, 1)
    case.section = case.section[64:]
    with pytest.raises(ValueError, match="bytes instead of"):
        case.dot("portable", 0, 1, x, one, 0, 1)
    with pytest.raises(ValueError, match="bit planes"):
        _core.nested_bundle_bytes("bf16", 64, 2)
