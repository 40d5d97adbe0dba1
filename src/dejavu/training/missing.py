"""Importing what only training needs."""

from __future__ import annotations

import importlib
import os
from typing import Any

from dejavu.errors import DejavuError


def import_torch(
    what: str = "training predictors of labels",
    otherwise: str = ", or leave --learn and --hidden out",
) -> Any:
    """The torch module.

    Its threads sleep between products: spinning, as those of OpenMP do by default, they take cores from the engine.

    Raises:
        DejavuError: it is not installed; `what` needs it, and `otherwise` is a way without.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise DejavuError(
            f"{what} needs torch ({error})", fix=f"pip install '.[train]' in a clone of dejavu{otherwise}"
        ) from error
