"""Fixtures that several test files share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tiny_models import CASES, build, prompt, transformers_logits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


# No deadlines: on a busy machine they fail what is sound. What is drawn differs from run to run, and what failed is printed
# as a blob that brings it back.
settings.register_profile("dejavu", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("dejavu")


def pytest_report_header() -> str:
    from dejavu import _core

    return f"instruction sets: {', '.join(_core.isas())}"


def pytest_configure() -> None:
    """Where `DEJAVU_TEST_ISAS` lists instruction sets (with commas), tests of these may not be left out unseen."""
    wanted = {name.strip() for name in os.environ.get("DEJAVU_TEST_ISAS", "").split(",") if name.strip()}
    if wanted:
        from dejavu import _core

        if missing := sorted(wanted - {*_core.isas()}):
            raise pytest.UsageError(f"DEJAVU_TEST_ISAS is set, and this machine lacks: {', '.join(missing)}")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from the name of a case of `tiny_models.CASES` to its saved model; each is built once."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    torch.set_num_threads(1)
    built: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in built:
            built[name] = tmp_path_factory.mktemp(name)
            build(CASES[name], built[name])
        return built[name]

    return folder


@pytest.fixture(scope="session")
def tiny_logits(tiny_folder: Callable[[str], Path]) -> Callable[[str], NDArray[np.float32]]:
    """A function from a case to transformers' logits [t, vocab] for `prompt(case)` in one call."""
    known: dict[str, NDArray[np.float32]] = {}

    def logits(name: str) -> NDArray[np.float32]:
        if name not in known:
            tokens = prompt(CASES[name])
            known[name] = transformers_logits(tiny_folder(name), tokens, len(tokens))
        return known[name]

    return logits


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's GGUF file, fetched once into dejavu's cache. Mark its tests `real_model`."""
    from dejavu.models.sources import resolve

    return resolve("smollm2")
