"""What a finished plan does on held-out text: the evidence that it carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.plan import LayerPlan, Pick
from dejavu.reference.selection import pick
from dejavu.training.agreement import Tally
from dejavu.training.labels import active_heads, active_neurons

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dejavu.executor import Trace
    from dejavu.plan import AccessPlan
    from dejavu.training.cost import Cost
    from dejavu.training.probe import Measured
    from dejavu.training.scores import Scores


class SetEvidence:
    """Selected sets of a plan against the labels, per layer that is not dense.

    Args:
        plan: selects.
        scores: computes what its selectors go by.
        label_thresholds: per layer, what abs(h) of an active neuron exceeds.
        heads_densities: per layer, the share of heads that is active.
    """

    def __init__(
        self,
        plan: AccessPlan,
        scores: Scores,
        label_thresholds: Sequence[float],
        heads_densities: Sequence[float],
    ) -> None:
        self._plan = plan
        self._scores = scores
        self._label_thresholds = label_thresholds
        self._heads_densities = heads_densities
        self._tallies = {
            "neurons": [Tally() if isinstance(layer.neurons, Pick) else None for layer in plan.layers],
            "heads": [Tally() if isinstance(layer.heads, Pick) else None for layer in plan.layers],
        }

    def add(self, traces: Iterable[Trace]) -> None:
        """Count traces of the dense model over held-out text."""
        for trace in traces:
            for i, layer in enumerate(self._plan.layers):
                neurons, heads = self._tallies["neurons"][i], self._tallies["heads"][i]
                if neurons is not None and isinstance(layer.neurons, Pick):
                    selected = pick(self._scores.neurons(layer.neurons, trace, i), layer.neurons)
                    neurons.add(selected, active_neurons(trace.hidden[i], self._label_thresholds[i]))
                if heads is not None and isinstance(layer.heads, Pick):
                    selected = pick(self._scores.heads(layer.heads, trace, i), layer.heads)
                    heads.add(selected, active_heads(trace.head_norm[i], self._heads_densities[i]))

    def layer(self, block: str, i: int) -> dict[str, Any]:
        """Recall and precision of a layer, {} where it is dense."""
        found = self._tallies[block][i]
        return {} if found is None else found.to_dict()

    def whole(self, block: str) -> dict[str, Any]:
        """Recall and precision over all layers that are not dense; {} where there is none."""
        total = Tally()
        found = [t for t in self._tallies[block] if t is not None]
        for part in found:
            total.merge(part)
        return total.to_dict() if found else {}


def describe(plan: AccessPlan, measured: Measured, sets: SetEvidence, cost: Cost) -> dict[str, Any]:
    """Figures of the plan and of each layer, JSON-able. Densities are those that the running plan had."""
    dense = [_touched(cost, i, LayerPlan(), 1.0, 1.0) for i in range(len(plan.layers))]
    touched = [
        _touched(cost, i, layer, measured.neurons[i], measured.heads[i])
        for i, layer in enumerate(plan.layers)
    ]
    return {
        "ppl_ratio": measured.ratio,
        "divergence": measured.divergence,
        "neurons": {"density": float(np.mean(measured.neurons)), **sets.whole("neurons")},
        "heads": {"density": float(np.mean(measured.heads)), **sets.whole("heads")},
        "touched_share": sum(touched) / sum(dense),
        "layers": [
            {
                "neurons": {"density": measured.neurons[i], **sets.layer("neurons", i)},
                "heads": {"density": measured.heads[i], **sets.layer("heads", i)},
                "touched_share": touched[i] / dense[i],
            }
            for i in range(len(plan.layers))
        ],
    }


def _touched(cost: Cost, i: int, layer: LayerPlan, neurons: float, heads: float) -> float:
    """Bytes of the weights of layer `i`."""
    spent = cost.neurons(i, layer.neurons, neurons) + cost.heads(layer.heads, heads)
    return spent + (0.0 if layer.compensator is None else cost.compensator(layer.compensator))
