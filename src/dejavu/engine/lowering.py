"""An access plan in the form that the C++ engine takes (csrc/bind_plan.cc)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.plan import Dense, LowRank, Pick, Random, Sketch, Static, VocabularySketch

if TYPE_CHECKING:
    from typing import Any

    from dejavu.models.config import ModelConfig
    from dejavu.plan import AccessPlan, Compensator, HeadSelector, NeuronSelector


def lower(plan: AccessPlan, config: ModelConfig) -> dict[str, Any]:
    """`plan`, which fits `config`, as plain values and float32 arrays."""
    vocabulary = plan.vocabulary
    bits, exact, mean = 0, 0, np.empty(0, np.float32)
    if isinstance(vocabulary, VocabularySketch):
        bits, exact, mean = vocabulary.bits, vocabulary.exact, vocabulary.mean
    return {
        "recompute": plan.kv.kind == "recompute",
        "buffer": plan.kv.buffer,
        "vocabulary_bits": bits,
        "exact": min(exact, config.vocab_size),
        **_floats(vocabulary_mean=mean),
        "layers": [
            {
                "neurons": _selector(layer.neurons, config.base_neurons),
                "heads": _selector(layer.heads, config.n_heads),
                "compensator": None if layer.compensator is None else _compensator(layer.compensator),
            }
            for layer in plan.layers
        ],
    }


def _selector(selector: NeuronSelector | HeadSelector, units: int) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": selector.kind}
    if isinstance(selector, Dense):
        return values
    if isinstance(selector, Static):
        return values | {"indices": np.ascontiguousarray(selector.indices, np.int32)}
    assert isinstance(selector, Pick)  # noqa: S101  narrows the type: all other kinds are
    values["k"] = 0 if selector.density is None else selector.count(units)
    values["threshold"] = 0.0 if selector.threshold is None else selector.threshold
    if isinstance(selector, Random):
        values["seed"] = selector.seed
    if isinstance(selector, LowRank | Sketch):
        values["lookahead"] = selector.lookahead
    if isinstance(selector, Sketch):
        values["bits"] = selector.bits
        values["leading_values"] = selector.values == "leading"
    if isinstance(selector, LowRank):
        values |= _floats(a=selector.a, b=selector.b, bias=selector.bias)
        values["relu"] = selector.hidden == "relu"
    return values


def _compensator(compensator: Compensator) -> dict[str, Any]:
    return _floats(a=compensator.a, b=compensator.b, bias=compensator.bias) | {"relu": False}


def _floats(**arrays: Any) -> dict[str, Any]:
    return {name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}
