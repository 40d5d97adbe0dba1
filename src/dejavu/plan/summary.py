"""What a plan says, in plain values: for tables and JSON."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.codecs import CODECS, GROUP

if TYPE_CHECKING:
    from dejavu.codecs import Codec
    from dejavu.plan.access_plan import AccessPlan, LayerPlan


def summarize(plan: AccessPlan) -> dict[str, Any]:
    """JSON-able: settings, evidence, and per layer its parts with their rank or number of indices and stored bytes."""
    layers = [_layer(layer) for layer in plan.layers]
    return {
        "name": plan.name,
        "model": plan.model,
        "kv": dataclasses.asdict(plan.kv),
        "vocabulary": _part(plan.vocabulary),
        "codecs": list(usable_codecs(plan)),
        "bytes": sum(layer["bytes"] for layer in layers),
        "layers": layers,
        "evidence": dict(plan.evidence),
    }


def usable_codecs(plan: AccessPlan) -> tuple[Codec, ...]:
    """Codecs of the weights that the plan can run on."""
    return tuple(codec for codec in CODECS if plan.suits(codec))


def _layer(layer: LayerPlan) -> dict[str, Any]:
    parts = {"neurons": layer.neurons, "heads": layer.heads, "compensator": layer.compensator}
    return {name: _part(part) for name, part in parts.items()} | {"bytes": sum(map(_bytes, parts.values()))}


def _part(part: Any) -> dict[str, Any]:
    """Kind and settings; arrays by their size alone."""
    if part is None:
        return {"kind": "none"}
    plain = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if not f.metadata}
    settings = {name: value for name, value in plain.items() if value is not None}
    sizes: dict[str, int] = {"rank": part.rank} if hasattr(part, "rank") else {}
    if hasattr(part, "indices"):
        sizes["indices"] = len(part.indices)
    return {"kind": part.kind, **sizes, **settings}


def _bytes(part: Any) -> int:
    """Bytes of the arrays as they are stored."""
    total = 0
    for field in dataclasses.fields(part) if part is not None else ():
        if stored := field.metadata.get("stored"):
            array = getattr(part, field.name)
            if stored == "int8":
                total += array.size + 2 * len(array) * -(-array.shape[1] // GROUP)
            else:
                total += array.size * np.dtype(stored).itemsize
    return total
