"""Access to the compiled core, and the instruction set that it is to use."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from dejavu.errors import DejavuError, InputError

if TYPE_CHECKING:
    from types import ModuleType


def load_core() -> ModuleType:
    """The extension module. Raises `DejavuError` where it was not built."""
    try:
        return importlib.import_module("dejavu._core")
    except ImportError as error:
        raise DejavuError(
            f"the compiled core of dejavu cannot be loaded: {error}",
            fix="pip install . (needs a C++17 compiler), or use executor='reference'",
        ) from error


def chosen_isa() -> str:
    """``DEJAVU_ISA`` if it is set, otherwise the best instruction set of this machine.

    Raises:
        InputError: ``DEJAVU_ISA`` names an instruction set that is unknown or not supported here.
    """
    core = load_core()
    wanted = os.environ.get("DEJAVU_ISA", "")
    if not wanted:
        return str(core.best_isa())
    supported = core.isas()
    if wanted not in supported:
        raise InputError(
            f"DEJAVU_ISA={wanted} is not supported by this machine; there are: {', '.join(supported)}",
            fix="unset DEJAVU_ISA",
        )
    return wanted
