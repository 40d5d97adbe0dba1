"""Bytes that one decoded token reads of a packed model, by part; and those that a plan adds to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dejavu.codecs import GROUP, mlp_codec
from dejavu.engine.core import load_core
from dejavu.nested import stored_bits
from dejavu.plan import Dense, LowRank, Oracle, Pick, Products, Sketch, Static, Threshold, VocabularySketch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dejavu.engine.packed import Packed
    from dejavu.plan import AccessPlan, HeadSelector, NeuronSelector


def dense_bytes(packed: Packed) -> dict[str, int]:
    """All of attention, MLPs and head. The embedding's one row, norms and biases are left out."""
    layers = range(packed.config.n_layers)
    return {
        "attention": sum(_attention(packed, i) + _size(packed, f"layers.{i}.kv") for i in layers),
        "mlp": sum(_size(packed, f"layers.{i}.{part}") for i in layers for part in ("lead", "mlp")),
        "head": _head(packed),
    }


def plan_bytes(
    packed: Packed, plan: AccessPlan, neurons: Sequence[float], heads: Sequence[float]
) -> dict[str, int]:
    """What `plan` reads at these mean densities per layer; "predictors": what is read to choose, and compensators.

    Keys and values of every K/V head are counted as computed.
    """
    c = packed.config
    parts = {"attention": 0.0, "mlp": 0.0, "head": float(_head(packed)), "predictors": 0.0}
    for i, layer in enumerate(plan.layers):
        parts["attention"] += heads[i] * _attention(packed, i) + _size(packed, f"layers.{i}.kv")
        chosen, first = _neurons(packed, i, layer.neurons, neurons[i])
        parts["mlp"] += chosen
        parts["predictors"] += first + _predictor(layer.neurons) + _predictor(layer.heads)
        if layer.compensator is not None:
            parts["predictors"] += _low_rank(layer.compensator.rank, c.d_model, c.d_model)
    if isinstance(plan.vocabulary, VocabularySketch):
        parts["head"] = _sketched_head(packed, plan.vocabulary)
    return {name: round(size) for name, size in parts.items()}


def added_bytes(packed: Packed, plan: AccessPlan) -> int:
    """What `plan` takes of memory beside the packed weights: low-rank maps, lists, and for logits from leading bits these.

    Leading bits of neurons, and gate rows that choose, are among the weights.
    """
    size = 0.0
    for layer in plan.layers:
        for selector in (layer.neurons, layer.heads):
            size += _predictor(selector) + (selector.indices.nbytes if isinstance(selector, Static) else 0)
        if layer.compensator is not None:
            size += _low_rank(layer.compensator.rank, packed.config.d_model, packed.config.d_model)
    if isinstance(plan.vocabulary, VocabularySketch):
        size += _head_sketch(packed, plan.vocabulary)
    return round(size)


def expected_density(selector: NeuronSelector | HeadSelector, units: int) -> float:
    """Of the units that a selector picks, as far as it is known before it ran: 1 for thresholds."""
    if isinstance(selector, Static):
        return len(selector.indices) / units
    return selector.density if isinstance(selector, Pick) and selector.density is not None else 1.0


def _neurons(packed: Packed, layer: int, selector: NeuronSelector, density: float) -> tuple[float, float]:
    """Of the chosen neurons; and of all of them, to choose."""
    lead, rest = (_size(packed, f"layers.{layer}.{part}") for part in ("lead", "mlp"))
    rows = 3 if packed.config.gated else 2
    if isinstance(selector, Dense):
        return lead + rest, 0.0
    if isinstance(selector, Sketch):
        return density * (rest if selector.values == "exact" else _down(packed, layer, rest)), lead
    first = rows - 1 if isinstance(selector, Oracle) else 1 if isinstance(selector, Threshold) else 0
    row = (lead + rest) / rows
    return density * (rows - first) * row, first * row


def _down(packed: Packed, layer: int, rest: int) -> float:
    """The down rows, which in int8 are a part of what sketches choose."""
    c = packed.config
    cut = mlp_codec(packed.codec, layer, c.n_layers) == "int8"
    return c.d_ff * c.d_model * (1 + 2 / GROUP) if cut else rest


def _attention(packed: Packed, layer: int) -> int:
    return _size(packed, f"layers.{layer}.heads") + _size(packed, f"layers.{layer}.o")


def _head(packed: Packed) -> int:
    return _size(packed, "head.weight") or _size(packed, "embed.weight")


def _sketched_head(packed: Packed, sketch: VocabularySketch) -> float:
    """All rows by their leading bits, the best as a whole."""
    return _head_sketch(packed, sketch) + min(sketch.exact / packed.config.vocab_size, 1.0) * _head(packed)


def _head_sketch(packed: Packed, sketch: VocabularySketch) -> float:
    """The leading bits of all rows, what the mean gives each row, and what rows miss along the directions."""
    c, leading = packed.config, load_core().leading_bytes
    shift = 4 * c.vocab_size if len(sketch.mean) else 0
    along = len(sketch.directions)
    missing = leading(along, c.vocab_size, 4) + 4 * sketch.directions.size if along else 0
    return float(leading(c.embed_dim, c.vocab_size, stored_bits({sketch.bits})) + shift + missing)


def _predictor(selector: NeuronSelector | HeadSelector) -> float:
    if not isinstance(selector, LowRank | Products):
        return 0.0
    spread = selector.spread.nbytes if isinstance(selector, Products) else 0
    return _low_rank(selector.rank, selector.a.shape[1], len(selector.bias)) + spread


def _low_rank(rank: int, width: int, outputs: int) -> float:
    """Rows of int8, the leading bits of rows of `rank`, and a float32 bias."""
    return rank * width * (1 + 2 / GROUP) + float(load_core().leading_bytes(rank, outputs, 4)) + 4 * outputs


def _size(packed: Packed, name: str) -> int:
    return packed.places.get(name, (0, 0))[1]
