"""What ships with dejavu: the default model adapted, as a delta and a share of it, with their plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dejavu import LLM, SamplingParams
from dejavu.models.loading import open_model
from dejavu.models.sources import resolve
from dejavu.models.spec import SHIPPED, SHIPPED_MODELS
from dejavu.plan import Sketch, VocabularySketch
from dejavu.plan.choice import own_plans

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.real_model

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = SamplingParams(max_tokens=24, temperature=0)


PLANS = {"smollm2-sparse": {"plan": 4}, "smollm2-half": {"plan": 4, "gentler/0.63": 5}}
"""Leading bits that are read."""


@pytest.fixture(scope="module", params=PLANS)
def shipped(request: pytest.FixtureRequest, smollm2_path: Path) -> str:
    return request.param


def test_there_are_no_others() -> None:
    assert tuple(PLANS) == SHIPPED_MODELS
    assert {path.name for path in SHIPPED.iterdir()} == set(PLANS)


def test_sizes() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.glob("*/delta.*")) <= 25_000_000
    plans = [folder for name, places in PLANS.items() for folder in (SHIPPED / name / x for x in places)]
    assert sum(file.stat().st_size for plan in plans for file in plan.iterdir()) <= 12_000_000


def test_plans_fit(shipped: str) -> None:
    opened = open_model(resolve(shipped))
    try:
        plans = own_plans(resolve(shipped))
        assert {place.as_posix() for place in plans} == set(PLANS[shipped])
        for place, plan in plans.items():
            plan.check_fits(opened.config, opened.weights.fingerprint)
            bits = {layer.neurons.bits for layer in plan.layers if isinstance(layer.neurons, Sketch)}
            assert bits == {PLANS[shipped][place.as_posix()]}
            assert isinstance(plan.vocabulary, VocabularySketch)
            assert plan.evidence["vocabulary"]["cost"] <= 1.001
    finally:
        opened.close()


def test_runs_its_share_of_the_neurons(shipped: str) -> None:
    with LLM.from_pretrained(shipped, fallback=False) as llm:
        assert llm.executor.packed.codec == "int8"  # type: ignore[attr-defined]
        assert "Paris" in llm.chat(QUESTION, GREEDY).text
        densities = llm.executor.last_stats["neurons"]
        share = {"smollm2-sparse": 0.25, "smollm2-half": 0.5}[shipped]
        assert share - 0.1 < sum(densities) / len(densities) < share + 0.1
