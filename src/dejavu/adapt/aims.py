"""What a run of adaptation aims at: the selectors of the layers, and of each stage their densities."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.errors import PlanError
from dejavu.plan import Dense

if TYPE_CHECKING:
    from dejavu.adapt.options import AdaptOptions
    from dejavu.models.loading import OpenModel
    from dejavu.plan import NeuronSelector


def wanted(
    opened: OpenModel, options: AdaptOptions
) -> tuple[tuple[NeuronSelector, ...], list[tuple[float, ...]]]:
    """Selectors of the layers, and of each stage their densities.

    Raises:
        PlanError: the plan is for another model, or of a kind that cannot be adapted to.
    """
    layers = opened.config.n_layers
    plan = options.plan
    if plan is None:
        return (options.sketch,) * layers, [(density,) * layers for density in options.densities]
    plan.check_fits(opened.config, opened.weights.fingerprint)
    if any(not isinstance(x.heads, Dense) or x.compensator is not None for x in plan.layers):
        raise PlanError(
            f"the plan {plan.name!r} selects heads or has compensators; a model is adapted to selected neurons",
            fix="train a plan without --heads-density and --compensator",
        )
    if not isinstance(plan.vocabulary, Dense):
        raise PlanError(
            f"the plan {plan.name!r} has logits from leading bits; a model is adapted to selected neurons",
            fix="adapt to the plan without them, and add them again by dejavu plan logits",
        )
    densities = []
    for layer, selector in enumerate(x.neurons for x in plan.layers):
        found: object = 1.0 if isinstance(selector, Dense) else getattr(selector, "density", None)
        if found is None:
            layers_found = plan.evidence.get("layers", [])
            if layer < len(layers_found):
                found = layers_found[layer].get("neurons", {}).get("density")
        if not isinstance(found, float):
            raise PlanError(
                f"the plan {plan.name!r} does not say the density of layer {layer}",
                fix="train it anew: dejavu train MODEL --text FILE -o PLAN",
            )
        densities.append(found)
    return tuple(x.neurons for x in plan.layers), [tuple(densities)]


def identity(selector: NeuronSelector) -> dict[str, Any]:
    """What of a selector must be equal for a run that is gone on with: all but what the run itself sets."""
    fields = dataclasses.fields(selector)
    plain = {f.name: getattr(selector, f.name) for f in fields if not f.metadata}
    digest = hashlib.sha256()
    for field in fields:
        if field.metadata:
            digest.update(np.ascontiguousarray(getattr(selector, field.name)).tobytes())
    own = {name: value for name, value in plain.items() if name not in ("density", "threshold")}
    return {"kind": selector.kind, "sha256": digest.hexdigest(), **own}
