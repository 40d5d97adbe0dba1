"""What ships with dejavu: an adapted model as a delta to the default one, with its plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dejavu import LLM, SamplingParams
from dejavu.models.loading import open_model
from dejavu.models.sources import resolve
from dejavu.plan import AccessPlan, Sketch, VocabularySketch

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.real_model

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = SamplingParams(max_tokens=24, temperature=0)


@pytest.fixture(scope="module")
def sparse(smollm2_path: Path) -> Path:
    return resolve("smollm2-sparse")


def test_sizes(sparse: Path) -> None:
    delta = sum(file.stat().st_size for file in sparse.glob("delta.*"))
    assert delta <= 25_000_000
    for plan in (sparse / "plan", *(sparse / "gentler").glob("*")):
        assert sum(file.stat().st_size for file in plan.iterdir()) <= 12_000_000


def test_the_adapted_model_runs_a_quarter_of_its_neurons(sparse: Path) -> None:
    opened = open_model(sparse)
    try:
        gentler = sorted((sparse / "gentler").iterdir())
        assert len(gentler) == 2
        for folder in (sparse / "plan", *gentler):
            plan = AccessPlan.load(folder)
            plan.check_fits(opened.config, opened.weights.fingerprint)
            assert all(isinstance(layer.neurons, Sketch) for layer in plan.layers)
            assert isinstance(plan.vocabulary, VocabularySketch)
            assert plan.evidence["vocabulary"]["cost"] <= 1.001
    finally:
        opened.close()
    with LLM.from_pretrained("smollm2-sparse", fallback=False) as llm:
        assert llm.executor.packed.codec == "int8"  # type: ignore[attr-defined]
        assert "Paris" in llm.chat(QUESTION, GREEDY).text
        densities = llm.executor.last_stats["neurons"]
        assert 0.15 < sum(densities) / len(densities) < 0.35
