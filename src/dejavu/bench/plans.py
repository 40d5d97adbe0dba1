"""What the plans of a measurement decide: the codec of the weights, and which results of bench and eval are joined."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dejavu.opening import made_for, natural_codec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dejavu.codecs import Codec
    from dejavu.models.weights import Weights
    from dejavu.plan import AccessPlan


def suited_codec(plans: Iterable[str], weights: Weights, model: Path, *, exact: bool = False) -> Codec:
    """The codec that the first of the plans was made for that says so, else what suits the file; `exact`: else f32.

    Args:
        plans: "off", "auto", folders, or names of plans of the model's own.
        weights: of the model.
        model: where it lies.
        exact: for the reference executor.

    Raises:
        PlanError: as `choose_plan`.
    """
    made = (made_for(plan, weights, model)[0] for plan in plans if plan != "off")
    return next((known for known in made if known), None) or ("f32" if exact else natural_codec(weights))


def plan_digest(plan: AccessPlan | None) -> str | None:
    """SHA-256 (hex) of a plan as it is saved; None: dense."""
    if plan is None:
        return None
    with TemporaryDirectory() as folder:
        plan.save(folder)
        return hashlib.sha256((Path(folder) / "plan.json").read_bytes()).hexdigest()
