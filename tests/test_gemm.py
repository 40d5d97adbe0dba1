"""The packed matrix product of every instruction set against float64."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavu import _core
from tolerances import TOLERANCES

ISAS = _core.isas()
KINDS = ["f32", "bf16"]
# One row, column or step of depth; around a vector, a panel and a block; more than a piece of depth.
SIZES = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 576]
PACKINGS = list(product(["a", "at"], ["b", "bt"]))
GUARD = np.float32(-12345.0)


def bf16(x: np.ndarray) -> np.ndarray:
    """x rounded to bfloat16, to nearest even (normal numbers only)."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def rounds(isa: str, kind: str) -> bool:
    """Whether this product rounds its operands to bf16."""
    return kind == "bf16" and isa in ("avx512bf16", "amx")


def matrix(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A random matrix whose rows are longer than its columns; NaN lies between them."""
    room = np.full((rows, columns + int(random.integers(0, 20))), np.nan, np.float32)
    view = room[:, :columns]
    view[:] = random.standard_normal((rows, columns), np.float32)
    return view


def check(
    isa: str, kind: str, m: int, n: int, k: int, packing: tuple[str, str], accumulate: bool, k_split: int
) -> None:
    random = np.random.default_rng([m, n, k, k_split])
    a, b = matrix(random, m, k), matrix(random, k, n)
    if packing[0] == "at":
        a = matrix(random, k, m).T
    if packing[1] == "bt":
        b = matrix(random, n, k).T
    room = np.full((m + 2, n + 24), GUARD)
    c = room[1:-1, 8 : 8 + n]
    before = random.standard_normal((m, n), np.float32) if accumulate else np.zeros((m, n), np.float32)
    c[:] = before if accumulate else np.nan

    _core.gemm(
        a.T if packing[0] == "at" else a,
        b.T if packing[1] == "bt" else b,
        c,
        isa=isa,
        kind=kind,
        pack=packing[0],
        pack_b=packing[1],
        accumulate=accumulate,
        k_split=k_split,
    )

    if rounds(isa, kind):
        a, b = bf16(np.ascontiguousarray(a)), bf16(np.ascontiguousarray(b))
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    # Relative to the sum of magnitudes: max|C| would be a poor scale where sums cancel.
    scale = (np.abs(a64) @ np.abs(b64) + np.abs(before)).max()
    error = np.abs(c - (a64 @ b64 + before)).max()
    assert error <= TOLERANCES["gemm_bf16" if rounds(isa, kind) else "gemm_f32"] * scale
    c[:] = GUARD
    assert (room == GUARD).all(), "something beside C was written"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", SIZES)
def test_every_pair_of_widths(isa: str, kind: str, m: int) -> None:
    for i, n in enumerate(SIZES):
        for j, packing in enumerate(PACKINGS):
            k = SIZES[(i + 3 * j + SIZES.index(m)) % len(SIZES)]
            check(isa, kind, m, n, k, packing, accumulate=(i + j) % 2 == 0, k_split=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("packing", PACKINGS, ids="-".join)
def test_every_depth_whole_and_in_pieces(isa: str, kind: str, k: int, packing: tuple[str, str]) -> None:
    for k_split, accumulate, (m, n) in product([0, 1, 32, 100], [False, True], [(9, 50), (33, 7)]):
        check(isa, kind, m, n, k, packing, accumulate, k_split)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 130),
    n=st.integers(1, 130),
    k=st.integers(1, 700),
    packing=st.sampled_from(PACKINGS),
    accumulate=st.booleans(),
    k_split=st.sampled_from([0, 32, 64, 256]),
)
def test_any_size(
    isa: str, kind: str, m: int, n: int, k: int, packing: tuple[str, str], accumulate: bool, k_split: int
) -> None:
    check(isa, kind, m, n, k, packing, accumulate, k_split)


@pytest.mark.parametrize("isa", ISAS)
def test_deep_and_wide_products_made_in_pieces(isa: str) -> None:
    for kind in KINDS:
        check(isa, kind, 97, 200, 4500, ("a", "bt"), accumulate=True, k_split=0)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if rounds(isa, "bf16")])
def test_operands_are_rounded_to_nearest_even(isa: str) -> None:
    exact = [1.0, -3.140625, 2.0**100, 2.0**-100]
    ties = np.array([0x3F808000, 0x3F818000, 0x3F80C000, 0xBF808000], np.uint32).view(np.float32)
    x = np.concatenate([np.array(exact, np.float32), ties])[:, None]
    one, out = np.ones((1, 1), np.float32), np.full(x.shape, np.nan, np.float32)
    _core.gemm(x, one, out, isa=isa, kind="bf16")
    np.testing.assert_array_equal(out, bf16(x))
    transposed = np.full(x.T.shape, np.nan, np.float32)
    _core.gemm(one, np.ascontiguousarray(x.T), transposed, isa=isa, kind="bf16")
    np.testing.assert_array_equal(transposed, bf16(x.T.copy()))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_stay_in_their_row_and_column(isa: str, kind: str) -> None:
    a, b = np.ones((20, 40), np.float32), np.ones((40, 20), np.float32)
    a[3, 7], b[9, 11] = np.nan, np.inf
    out = np.zeros((20, 20), np.float32)
    _core.gemm(a, b, out, isa=isa, kind=kind)
    expected = np.full((20, 20), 40, np.float32)
    expected[:, 11], expected[3, :] = np.inf, np.nan
    np.testing.assert_array_equal(out, expected)


def test_bad_arguments_are_refused() -> None:
    a, b, c = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match="shapes"):
        _core.gemm(a, b.T.copy(), c, isa="portable", kind="f32")
    with pytest.raises(ValueError, match="kind"):
        _core.gemm(a, b, c, isa="portable", kind="f64")
    with pytest.raises(ValueError, match="packing"):
        _core.gemm(a, b, c, isa="portable", kind="f32", pack="b")
    with pytest.raises(ValueError, match="contiguous"):
        _core.gemm(a, b.T.copy().T, c, isa="portable", kind="f32")
    with pytest.raises(ValueError, match="unknown"):
        _core.gemm(a, b, c, isa="mmx", kind="f32")
    with pytest.raises(TypeError):
        _core.gemm(a.astype(np.float64), b, c, isa="portable", kind="f32")


def test_instruction_sets_are_named_best_last() -> None:
    order = ["portable", "avx2", "avx512", "avx512bf16", "amx"]
    assert order[: len(ISAS)] == ISAS
