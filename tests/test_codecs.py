from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dejavu.codecs import CODECS, GROUP, SHRINK, Codec, decode, embed_codec, encode, roundtrip
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
        scale = F32(np.float16(max(abs(w) for w in group) / F32(127)))
        codes = [F32(0) if scale == 0 else F32(np.clip(np.rint(w / scale), -127, 127)) for w in group]
        return np.array([scale * q for q in codes], F32)
    low, high = min(group), max(group)
    middle, reach = F32((low + high) / F32(2)), F32((high - low) / F32(2))
    best, kept = F32(np.inf), None
    for factor in SHRINK:
        lo, hi = F32(middle - F32(factor) * reach), F32(middle + F32(factor) * reach)
        scale, minimum = F32(np.float16((hi - lo) / F32(15))), F32(np.float16(lo))
        codes = [F32(0) if scale == 0 else F32(np.clip(np.rint((w - minimum) / scale), 0, 15)) for w in group]
        values = [F32(F32(scale * q) + minimum) for q in codes]
        errors = [F32(F32(w - v) * F32(w - v)) for w, v in zip(group, values, strict=True)]
        while len(errors) > 1:
            middle_index = len(errors) // 2
            errors = [F32(a + b) for a, b in zip(errors[:middle_index], errors[middle_index:], strict=True)]
        if errors[0] < best:
            best, kept = errors[0], values
    assert kept is not None
    return np.array(kept, F32)


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
    # Half a step, one float16 rounding of the scale over 127 steps, and float16's least step for tiny groups.
    bound = peak * (0.5 / 127 + 2.0**-11) * 1.01 + 127 * 2.0**-24
    assert np.abs(roundtrip("int8", rows) - rows).max() <= bound
    # Least squares may clip single values, but the group's sum of squares is at most that of the plain range.
    plain = (2 * peak / 15 * 0.5 + 2 * peak * 2.0**-10) ** 2 * GROUP + 1e-9
    assert ((roundtrip("int4", rows) - rows) ** 2).sum() <= plain * rows.size


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
    assert (scales[:, 0] <= full).all()


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


def test_embeddings_never_go_below_eight_bits() -> None:
    assert [embed_codec(c) for c in CODECS] == ["f32", "bf16", "int8", "int8"]
