"""Access plans: what each token touches, layer by layer. Data only; the executors carry it out."""

from __future__ import annotations

from dejavu.plan.access_plan import AccessPlan, KvPolicy, LayerPlan, VocabularySketch
from dejavu.plan.choice import choose_plan
from dejavu.plan.compensator import Compensator
from dejavu.plan.selectors import (
    Dense,
    HeadSelector,
    LowRank,
    NeuronSelector,
    Oracle,
    Pick,
    Products,
    Random,
    Sketch,
    Static,
    Threshold,
)

__all__ = [
    "AccessPlan",
    "Compensator",
    "Dense",
    "HeadSelector",
    "KvPolicy",
    "LayerPlan",
    "LowRank",
    "NeuronSelector",
    "Oracle",
    "Pick",
    "Products",
    "Random",
    "Sketch",
    "Static",
    "Threshold",
    "VocabularySketch",
    "choose_plan",
]
