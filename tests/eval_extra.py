"""Packages of the extra `eval`, which not everybody has who develops dejavu."""

from __future__ import annotations

import os
from typing import Any

import pytest


def eval_extra(name: str) -> Any:
    """The package; tests are skipped without it, or fail where DEJAVU_TEST_EVAL is set, as on CI, which installs it."""
    try:
        return pytest.importorskip(name, reason="pip install '.[eval]'")
    except pytest.skip.Exception as skipped:
        if os.environ.get("DEJAVU_TEST_EVAL"):
            pytest.fail(f"DEJAVU_TEST_EVAL is set, and {name} cannot be imported: {skipped.msg}")
        raise
