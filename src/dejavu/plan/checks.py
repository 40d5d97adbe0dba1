"""Checks of values that may come from a file: each returns its value, or raises `PlanError`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.codecs import Encoded, decode, encode, is_settled, roundtrip
from dejavu.errors import NumericsError, PlanError
from dejavu.nested import estimate, is_settled_estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray


def finite(what: str, value: object) -> float:
    """A number that float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 3.4e38:
        raise PlanError(f"{what} is {value!r:.60}; a finite number is needed")
    return float(value)


def one_of(what: str, value: object, known: Collection[object]) -> None:
    """One of a few values, of the same type (1 is not True)."""
    if not any(type(value) is type(k) and value == k for k in known):
        raise PlanError(f"{what} is {value!r:.60}; supported: {', '.join(map(str, known))}")


def whole(what: str, value: object, low: int, high: int) -> None:
    """An integer from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise PlanError(f"{what} is {value!r:.60}; an integer from {low} to {high} is needed")


def array(what: str, value: object, dtype: type[Any], rank: int) -> NDArray[Any]:
    """A finite array of `rank` axes as a read-only C-contiguous copy of `dtype`."""
    try:
        result = np.array(value, dtype, order="C")
    except (TypeError, ValueError) as error:
        raise PlanError(f"{what} is not an array of {np.dtype(dtype)}: {error}") from error
    if result.ndim != rank or not np.isfinite(result).all():
        raise PlanError(f"{what} has shape {list(result.shape)}; {rank} axes of finite numbers are needed")
    result.flags.writeable = False
    return result


def int8_rows(what: str, value: object) -> NDArray[np.float32]:
    """Rows [n, width], rounded as they are stored: int8 with a float16 scale per 32 values.

    Or such codes, `Encoded`. Encoding the result gives back exactly the result. One rounding is not enough for that where a
    scale is so small (below 6e-5) that float16 rounds it coarsely.
    """
    if isinstance(value, Encoded) and is_settled(value):
        return array(what, decode(value), np.float32, 2)
    return _rounded(what, value, lambda rows: roundtrip("int8", rows))


def leading_rows(what: str, value: object) -> NDArray[np.float32]:
    """Rows [n, width], rounded as they are read: the four leading bits of their int8 codes (see `dejavu.nested`).

    Or such codes, `Encoded`. Encoding the result gives back exactly the result; the first rounding moves the steps, so that
    it takes several.
    """
    if isinstance(value, Encoded) and is_settled_estimate(value):
        return array(what, decode(value), np.float32, 2)
    return _rounded(what, value, lambda rows: estimate(encode("int8", rows), 4))


def _rounded(
    what: str, value: object, step: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """`step` over and over, until it changes nothing."""
    rows = array(what, decode(value) if isinstance(value, Encoded) else value, np.float32, 2)
    try:
        while rows.size and not np.array_equal(rounded := step(rows), rows):
            rows = rounded
    except NumericsError as error:
        raise PlanError(f"{what} does not fit into int8 with float16 scales", fix="train it again") from error
    rows.flags.writeable = False
    return rows


def shape(what: str, found: tuple[int, ...], needed: tuple[int, ...]) -> None:
    """Shapes that must agree."""
    if found != needed:
        raise PlanError(f"{what} has shape {list(found)}; {list(needed)} is needed")


def density(what: str, value: object) -> None:
    """A fraction above 0."""
    if not 0 < finite(what, value) <= 1:
        raise PlanError(f"{what} is {value!r:.60}; above 0 and up to 1 is needed")
