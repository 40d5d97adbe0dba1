"""An access plan in the form that the C++ engine takes (csrc/bind_plan.cc)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.engine.layout import PLAIN_ROWS
from dejavu.engine.packing import encode_bundles
from dejavu.plan import Dense, LowRank, Pick, Products, Random, Sketch, Static, VocabularySketch

if TYPE_CHECKING:
    from typing import Any

    from dejavu.models.config import ModelConfig
    from dejavu.plan import AccessPlan, Compensator, HeadSelector, NeuronSelector


def lower(plan: AccessPlan, config: ModelConfig, threads: int) -> dict[str, Any]:
    """`plan`, which fits `config`, as plain values, float32 arrays and packed rows."""
    return {
        "recompute": plan.kv.kind == "recompute",
        "buffer": plan.kv.buffer,
        "vocabulary": None
        if isinstance(plan.vocabulary, Dense)
        else _vocabulary(plan.vocabulary, config.vocab_size, threads),
        "layers": [
            {
                "neurons": _selector(layer.neurons, config.base_neurons),
                "heads": _selector(layer.heads, config.n_heads),
                "compensator": None if layer.compensator is None else _compensator(layer.compensator),
            }
            for layer in plan.layers
        ],
    }


def _vocabulary(sketch: VocabularySketch, size: int, threads: int) -> dict[str, Any]:
    along = len(sketch.directions)
    missing = np.pad(sketch.missing, ((0, -len(sketch.missing) % PLAIN_ROWS), (0, 0)))
    return {
        "bits": sketch.bits,
        "exact": min(sketch.exact, size),
        **_floats(mean=sketch.mean),
        "along": along,
        "directions": encode_bundles("f32", sketch.directions[None]) if along else None,
        "missing": encode_bundles("int8", missing.reshape(-1, PLAIN_ROWS, along), threads) if along else None,
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
    if isinstance(selector, LowRank | Products | Sketch):
        values["lookahead"] = selector.lookahead
    if isinstance(selector, Sketch):
        values["bits"] = selector.bits
        values["leading_values"] = selector.values == "leading"
    if isinstance(selector, LowRank | Products):
        values |= _floats(a=selector.a, b=selector.b, bias=selector.bias)
        values["relu"] = isinstance(selector, LowRank) and selector.hidden == "relu"
    if isinstance(selector, Products):
        values |= _floats(spread=selector.spread)
    return values


def _compensator(compensator: Compensator) -> dict[str, Any]:
    return _floats(a=compensator.a, b=compensator.b, bias=compensator.bias) | {"relu": False}


def _floats(**arrays: Any) -> dict[str, Any]:
    return {name: np.ascontiguousarray(value, np.float32) for name, value in arrays.items()}
