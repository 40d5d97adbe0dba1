"""Checks of what a caller passes: an error names the argument, what was found and what is supported."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TypeVar

import numpy as np

from dejavu.errors import InputError

Name = TypeVar("Name", bound=str)

_MOST_SHOWN = 60
"""Characters of a value in a message."""


def whole(name: str, value: object, low: float, high: float = math.inf) -> int:
    """`value` as an int; NumPy's are fine.

    Raises:
        InputError: it is no whole number from `low` to `high`.
    """
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or not low <= number <= high:
        raise refusal(name, value, f"a whole number from {_range(low, high)}")
    return number


def real(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float; NumPy's are fine.

    Raises:
        InputError: it is no number from `low` to `high`.
    """
    number = as_float(value)
    if not low <= number <= high:
        raise refusal(name, value, f"a number from {_range(low, high)}")
    return number


def as_float(value: object) -> float:
    """`value` as a float; NaN for what is no number, or a whole one beyond all floats."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def flag(name: str, value: object) -> bool:
    """`value` as a bool; NumPy's are fine.

    Raises:
        InputError: it is none, such as "no" or None, whose truth is not what was meant.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise refusal(name, value, "True or False")
    return bool(value)


def choice(name: str, value: object, known: tuple[Name, ...]) -> Name:
    """The one of `known` that equals `value`.

    Raises:
        InputError: there is none.
    """
    for one in known:
        if isinstance(value, str) and value == one:
            return one
    raise InputError(f"{name} {_shown(value)} is unknown; there are: {', '.join(known)}")


def refusal(name: str, value: object, wanted: str) -> InputError:
    """The error for an argument that is not what is `wanted`."""
    return InputError(f"{name} is {_shown(value)}; it must be {wanted}")


def _range(low: float, high: float) -> str:
    return f"{low} on" if high == math.inf else f"{low} to {high}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        text = "a number of very many digits"
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."
