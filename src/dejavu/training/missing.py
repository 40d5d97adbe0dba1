"""Importing what only training needs."""

from __future__ import annotations

import importlib
from typing import Any

from dejavu.errors import DejavuError


def import_torch() -> Any:
    """The torch module. Raises `DejavuError` where it is not installed."""
    try:
        importlib.import_module("safetensors")
        return importlib.import_module("torch")
    except ImportError as error:
        raise DejavuError(
            f"training low-rank predictors needs torch ({error})",
            fix="pip install 'dejavu-llm[train]', or use --selector sketch, which needs no training",
        ) from error
