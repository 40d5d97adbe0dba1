"""What a plan says, in plain values: for tables and JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.codecs import CODECS, GROUP

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dejavu.codecs import Codec
    from dejavu.plan.access_plan import AccessPlan, LayerPlan

_LONGEST = 100
"""Characters of a piece of evidence that has no words of its own."""


def summarize(plan: AccessPlan) -> dict[str, Any]:
    """JSON-able: settings, evidence, and per layer its parts with their rank or number of indices and stored bytes."""
    layers = [_layer(layer) for layer in plan.layers]
    return {
        "name": plan.name,
        "model": plan.model,
        "kv": dataclasses.asdict(plan.kv),
        "vocabulary": _part(plan.vocabulary),
        "codecs": list(usable_codecs(plan)),
        "bytes": _bytes(plan.vocabulary) + sum(layer["bytes"] for layer in layers),
        "layers": layers,
        "evidence": dict(plan.evidence),
    }


def describe_evidence(evidence: Mapping[str, Any]) -> dict[str, str]:
    """What `dejavu train` and `dejavu adapt` found of a plan, in words by what it is of; all else as it is stored.

    Figures of single layers are left out.
    """
    left = {name: value for name, value in evidence.items() if name not in ("layers", "seed", "exact")}
    told: dict[str, str] = {}
    tokens = _numbers(evidence.get("tokens"))
    if ratio := _numbers({"ppl_ratio": left.get("ppl_ratio")}):
        of = "the dense original in bf16" if "exact" in evidence else "the dense model"
        codec = f", held in {left.pop('codec')}" if "codec" in left else ""
        text = f", on {tokens['verification']:,} held-out tokens" if "verification" in tokens else ""
        told["perplexity"] = f"{ratio['ppl_ratio']:.4f} times that of {of}{codec}{text}"
        del left["ppl_ratio"]
        if limit := _numbers({"highest": left.get("max_ppl_ratio")}):
            verdict = "MISSED" if misses_ratio(evidence) else "kept"
            told["asked for"] = f"at most {limit['highest']:.4f} times, which is {verdict}"
            del left["max_ppl_ratio"]
    for block in ("neurons", "heads"):
        if found := _numbers(left.get(block)):
            del left[block]
            if found.get("density", 0) < 1:
                told[block] = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    if share := _numbers({"share": left.get("touched_share")}):
        told["touched"] = f"{100 * share['share']:.0f}% of the layers' bytes, predictors included"
        del left["touched_share"]
    if "cost" in (logits := _numbers(left.get("vocabulary"))):
        told["logits"] = f"{logits['cost']:.4f} times the perplexity with exact ones"
        del left["vocabulary"]
    if tokens:
        told["tokens"] = ", ".join(f"{n:,} {name}" for name, n in tokens.items() if n)
        del left["tokens"]
    for name, words in (("measured_on", "figures are of weights"), ("command", "made by")):
        if name in left:
            told[words] = str(left.pop(name))
    return told | {f"evidence: {name}": _short(value) for name, value in left.items()}


def misses_ratio(evidence: Mapping[str, Any]) -> bool:
    """Whether a plan costs more perplexity than `dejavu train --max-ppl-ratio` was to allow."""
    found = _numbers({name: evidence.get(name) for name in ("ppl_ratio", "max_ppl_ratio")})
    return bool(found) and found["ppl_ratio"] > found["max_ppl_ratio"]


def _numbers(value: object) -> dict[str, float]:
    """A mapping of numbers; empty where it is anything else: evidence is not checked when a plan is read."""
    if isinstance(value, dict) and all(isinstance(n, (int, float)) for n in value.values()):
        return value
    return {}


def _short(value: object) -> str:
    """A piece of evidence on one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


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
