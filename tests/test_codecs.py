from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dejavu.codecs import (
    CODECS,
    FITS,
    GROUP,
    LEVELS,
    SHRINK,
    Codec,
    Encoded,
    decode,
    embed_codec,
    encode,
    is_settled,
    mlp_codec,
    roundtrip,
)
from dejavu.errors import InputError, NumericsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

F32 = np.float32
matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 70)),
    elements=st.floats(-100, 100, width=32),
)


def slow_group(codec: Codec, group: NDArray[np.float32]) -> NDArray[np.float32]:
    """The definition once more, one scalar at a time."""
    if codec == "int8":
        tries = []
        for levels in LEVELS:
            scale = F32(np.float16(max(abs(w) for w in group) / F32(levels)))
            codes = [F32(0) if scale == 0 else F32(np.clip(np.rint(w / scale), -127, 127)) for w in group]
            values = [F32(scale * q) for q in codes]
            tries.append(
                (halving([F32(F32(w - v) * F32(w - v)) for w, v in zip(group, values, strict=True)]), values)
            )
        return np.array(min(tries, key=lambda found: found[0])[1], F32)
    low, high = min(group), max(group)
    middle, reach = F32((low + high) / F32(2)), F32((high - low) / F32(2))
    best, kept = F32(np.inf), None
    for factor in SHRINK:
        lo, hi = F32(middle - F32(factor) * reach), F32(middle + F32(factor) * reach)
        scale, minimum = F32(np.float16((hi - lo) / F32(15))), F32(np.float16(lo))
        for _ in range(FITS + 1):
            codes = [
                F32(0) if scale == 0 else F32(np.clip(np.rint((w - minimum) / scale), 0, 15)) for w in group
            ]
            values = [F32(F32(scale * q) + minimum) for q in codes]
            error = halving([F32(F32(w - v) * F32(w - v)) for w, v in zip(group, values, strict=True)])
            if error < best:
                best, kept = error, values
            above = [F32(w - minimum) for w in group]
            count, total, height = F32(GROUP), halving(codes), halving(above)
            spread = F32(count * halving([q * q for q in codes])) - F32(total * total)
            if spread > 0:
                products = halving([F32(q * a) for q, a in zip(codes, above, strict=True)])
                scale = F32(np.float16(F32(F32(count * products) - F32(total * height)) / spread))
                minimum = F32(np.float16(minimum + F32(F32(height - F32(scale * total)) / count)))
    assert kept is not None
    return np.array(kept, F32)


def halving(values: list[np.float32]) -> np.float32:
    """The sum of 32 values, halves added until one is left."""
    while len(values) > 1:
        middle = len(values) // 2
        values = [F32(a + b) for a, b in zip(values[:middle], values[middle:], strict=True)]
    return values[0]


def slow(codec: Codec, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    n, width = rows.shape
    padded = np.zeros((n, -(-width // GROUP) * GROUP), F32)
    padded[:, :width] = rows
    out = [np.concatenate([slow_group(codec, g) for g in row.reshape(-1, GROUP)])[:width] for row in padded]
    return np.array(out, F32)


@settings(max_examples=40, deadline=None)
@given(rows=matrices, codec=st.sampled_from(["int8", "int4"]))
def test_vectorised_codecs_equal_the_scalar_definition(rows: NDArray[np.float32], codec: Codec) -> None:
    assert np.array_equal(roundtrip(codec, rows), slow(codec, rows))


@settings(max_examples=50, deadline=None)
@given(rows=matrices)
def test_error_is_bounded(rows: NDArray[np.float32]) -> None:
    peak = np.abs(rows).max()
    assert np.array_equal(roundtrip("f32", rows), rows)
    assert np.all(np.abs(roundtrip("bf16", rows) - rows) <= np.abs(rows) * 2.0**-8 + 2.0**-133)
    # Half a step, one float16 rounding of the scale over all steps, and float16's least step for tiny groups.
    bound = peak * (0.5 / LEVELS[-1] + 2.0**-11) * 1.01 + 127 * 2.0**-24
    assert np.abs(roundtrip("int8", rows) - rows).max() <= bound
    # Least squares may clip single values, but the group's sum of squares is at most that of the plain range.
    plain = (2 * peak / 15 * 0.5 + 2 * peak * 2.0**-10) ** 2 * GROUP + 1e-9
    assert ((roundtrip("int4", rows) - rows) ** 2).sum() <= plain * rows.size


@settings(max_examples=50, deadline=None)
@given(rows=matrices, exponent=st.integers(-10, 4))
def test_int8_keeps_values_that_it_decoded(rows: NDArray[np.float32], exponent: int) -> None:
    once = roundtrip("int8", rows * F32(2.0**exponent))
    scales = encode("int8", once).scales
    assume(
        not ((scales > 0) & (scales < np.finfo(np.float16).tiny)).any()
    )  # so small, they come in steps too coarse
    assert np.array_equal(roundtrip("int8", once), once)


def test_int8_keeps_codes_that_it_chose() -> None:
    first = encode("int8", np.random.default_rng(3).standard_normal((256, 96)).astype(F32))
    again = encode("int8", decode(first))
    assert is_settled(first)
    np.testing.assert_array_equal(again.codes, first.codes)
    np.testing.assert_array_equal(again.scales, first.scales)


@given(
    codes=hnp.arrays(np.int8, (2, GROUP), elements=st.integers(-128, 127)),
    scales=hnp.arrays(np.float16, (2, 1), elements=st.floats(0, 512, width=16)),
    whole=st.booleans(),
)
def test_settled_codes_keep_their_values(
    codes: NDArray[np.int8], scales: NDArray[np.float16], whole: bool
) -> None:
    if whole:
        codes[:, 0] = LEVELS[-1]
    found = Encoded("int8", GROUP, codes, scales)
    if is_settled(found):
        rows = decode(found)
        np.testing.assert_array_equal(roundtrip("int8", rows), rows)
    else:
        assert not whole or (codes == -128).any()


def test_int8_searches_its_scale() -> None:
    rows = np.random.default_rng(4).standard_normal((256, GROUP)).astype(F32)
    scale = np.abs(rows).max(1, keepdims=True) / F32(127)
    plain = ((np.rint(rows / scale) * scale - rows) ** 2).sum()
    assert ((roundtrip("int8", rows) - rows) ** 2).sum() < 0.85 * plain


def test_bf16_rounds_half_to_even() -> None:
    rows = np.array([[0x3F808000, 0x3F818000, 0x3F808001, 0xBF808000]], np.uint32).view(F32)
    assert encode("bf16", rows).codes.tolist() == [[0x3F80, 0x3F82, 0x3F81, 0xBF80]]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("width", [1, 31, 32, 33, 64])
def test_rows_keep_their_shape_and_zeros_stay_zero(codec: Codec, width: int) -> None:
    rows = np.zeros((3, width), F32)
    rows[1, 0] = -0.0
    encoded = encode(codec, rows)
    assert decode(encoded).shape == (3, width)
    assert not decode(encoded).any()
    if codec in ("int8", "int4"):
        assert encoded.scales is not None
        assert encoded.codes.shape == (3, encoded.scales.shape[1] * GROUP)


def test_a_16_level_grid_survives_int4_exactly() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (5, 64))
    codes[:, [0, 32]], codes[:, [1, 33]] = 0, 15
    rows = (codes * F32(0.0625) - F32(0.5)).astype(F32)
    encoded = encode("int4", rows)
    assert np.array_equal(encoded.codes, codes)
    assert np.array_equal(decode(encoded), rows)


def test_a_shrunken_range_wins_when_one_value_stands_out() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((64, GROUP)).astype(F32)
    scales = encode("int4", rows).scales
    assert scales is not None
    full = ((rows.max(1) - rows.min(1)) / F32(15)).astype(np.float16)
    assert (scales[:, 0] < full).any()


def test_fitting_beats_the_best_of_the_plain_ranges() -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((64, GROUP)).astype(F32)
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    plain = []
    for factor in SHRINK:
        reach = F32(factor) * (high - low) / 2
        minimum, scale = (low + high) / 2 - reach, reach / F32(7.5)
        values = np.clip(np.rint((rows - minimum) / scale), 0, 15) * scale + minimum
        plain.append(((values - rows) ** 2).sum(1))
    fitted = ((roundtrip("int4", rows) - rows) ** 2).sum()
    assert fitted < 0.93 * np.min(plain, axis=0).sum()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_weights_are_an_error(codec: Codec, bad: float) -> None:
    with pytest.raises(NumericsError, match="NaN or infinity"):
        encode(codec, np.array([[1.0, bad]], F32))


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_values_beyond_float16_scales_are_an_error(codec: Codec) -> None:
    with pytest.raises(NumericsError, match="float16"):
        encode(codec, np.array([[1e8, -1e8]], F32))


def test_unknown_codec_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="f32, bf16, int8, int4"):
        encode("int3", np.zeros((1, 32), F32))  # type: ignore[arg-type]


def test_int4_keeps_the_first_and_the_last_mlp_in_int8() -> None:
    assert [mlp_codec("int4", i, 8) for i in range(8)] == ["int8", *["int4"] * 6, "int8"]
    assert {mlp_codec("int4", i, 7) for i in range(7)} == {"int4"}
    assert {mlp_codec("bf16", i, 8) for i in range(8)} == {"bf16"}


def test_embeddings_never_go_below_eight_bits() -> None:
    assert [embed_codec(c) for c in CODECS] == ["f32", "bf16", "int8", "int8"]
