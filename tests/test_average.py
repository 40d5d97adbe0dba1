"""`benchmarks/average.py`: the middle of two models, with the plan of the first."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavu.errors import InputError
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, LayerPlan, Threshold
from tiny_models import CASES, build
from tiny_tokenizer import TRAINED

if TYPE_CHECKING:
    from collections.abc import Callable

    Average = Callable[[Path, Path, float, Path], None]

ROOT = Path(__file__).parent.parent


@pytest.fixture
def average(monkeypatch: pytest.MonkeyPatch) -> Average:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    found: Average = importlib.import_module("average").average
    return found


def model(folder: Path, case: str, seed: int) -> Path:
    tiny = CASES[case]
    build(dataclasses.replace(tiny, options={**tiny.options, "vocab_size": 320}), folder, seed)
    TRAINED.save(str(folder / "tokenizer.json"))
    opened = open_model(folder)
    layers = (LayerPlan(neurons=Threshold(density=0.5)),) * opened.config.n_layers
    AccessPlan(model=opened.weights.fingerprint, layers=layers).save(folder / "plan")
    opened.close()
    return folder


def test_the_middle_of_two(average: Average, tmp_path: Path) -> None:
    first, second = (model(tmp_path / name, "llama", seed) for seed, name in enumerate(("a", "b")))
    average(first, second, 0.25, tmp_path / "out")
    a, b, found = (open_model(path) for path in (first, second, tmp_path / "out"))
    for name in a.weights.names():
        before = a.weights.read(name)
        expected = before
        if name.startswith("layers.") and before.ndim == 2:
            expected = 0.75 * before + 0.25 * b.weights.read(name)
            assert np.abs(expected - before).max() > 0.01
        np.testing.assert_allclose(found.weights.read(name), expected, rtol=2**-8)
    plan = AccessPlan.load(tmp_path / "out" / "plan")
    assert plan.model == found.weights.fingerprint
    assert [layer.neurons for layer in plan.layers] == [Threshold(density=0.5)] * len(plan.layers)
    for opened in (a, b, found):
        opened.close()


def test_models_that_have_no_middle(average: Average, tmp_path: Path) -> None:
    first, second = model(tmp_path / "a", "llama", 0), model(tmp_path / "b", "llama-head-dim", 0)
    with pytest.raises(InputError, match="not of one shape"):
        average(first, second, 0.5, tmp_path / "out")
    with pytest.raises(InputError, match="a share of"):
        average(first, first, 1.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
