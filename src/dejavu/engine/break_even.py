"""Where a plan does not pay on this machine, the model runs dense: measured once, layer by layer, and remembered.

A layer pays if its MLP takes less time by the plan (scoring and picking included) than dense in the same packed model. What
is left of the plan pays if all MLPs together, the head, and attention where the plan chooses heads, take less time than
those of the model as it is packed without the plan. A look-ahead selector's scoring is counted where it is done, in the
layer whose input it reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.engine.packed import VERSION
from dejavu.environment import describe_machine, package_version
from dejavu.errors import CacheError
from dejavu.models.store import atomic_write
from dejavu.plan import Dense
from dejavu.plan.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.engine.native import NativeExecutor
    from dejavu.plan import AccessPlan

SAMPLE = (
    "The tide had gone out in the night, and what it left behind on the sand looked like the handwriting of somebody "
    "in a hurry: loops of weed, a rope, three planks of a boat. Before breakfast the children had read all of it."
)
"""Text that is decoded to measure."""
ROUNDS = 6
STEPS = 4
"""Tokens of a round; of the rounds the fastest counts, which other programs disturbed least."""


@dataclasses.dataclass(frozen=True)
class BreakEven:
    """What of a plan pays.

    Attributes:
        dense: layers that run dense.
        speedup: of MLPs, head and (where the plan chooses heads) attention together, what is left of the plan against the
            model without it; 1 where nothing is.
    """

    dense: tuple[int, ...]
    speedup: float

    def apply(self, plan: AccessPlan) -> AccessPlan | None:
        """What is left of `plan`; None: nothing."""
        if self.speedup <= 1:
            return None
        layers = tuple(
            dataclasses.replace(layer, neurons=Dense(), compensator=None) if i in self.dense else layer
            for i, layer in enumerate(plan.layers)
        )
        return dataclasses.replace(plan, layers=layers)


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a token."""

    mlps: NDArray[np.float64]
    """Of each layer [L]."""
    others: float
    """Of what else the plan may change: the head, and attention where it chooses heads."""


def break_even(
    executor: NativeExecutor,
    plan: AccessPlan,
    plain: Callable[[], NativeExecutor],
    tokens: NDArray[np.int32],
    memory: Path | None,
) -> BreakEven:
    """Measure, or recall what was measured for this plan, model, codec, machine and version of dejavu.

    Args:
        executor: the model as the plan needs it.
        plan: of it; set only where it has to be measured.
        plain: opens the model as it runs without the plan; the same one where that makes no difference.
        tokens: some text [t].
        memory: file for the result; None: none is kept. One that cannot be read or written does no harm.
    """
    key = _key(executor, plan)
    if memory is not None and (known := _recall(memory, key)) is not None:
        return known
    executor.set_plan(plan)
    other = plain()
    settings = [(executor, True), (executor, False), *([] if other is executor else [(other, False)])]
    heads = any(not isinstance(layer.heads, Dense) for layer in plan.layers)
    by_plan, dense, *rest = time_in_turn(settings, tokens, attention=heads)
    if other is not executor:
        other.close()
    found = decide(by_plan, dense, rest[0] if rest else dense)
    if memory is not None:
        _remember(memory, key, found)
    executor.reset_stats()
    return found


def decide(by_plan: Times, dense: Times, without: Times) -> BreakEven:
    """From seconds by the plan, dense in the same packed model, and of the model without the plan."""
    slower = np.flatnonzero(by_plan.mlps >= dense.mlps)
    best = np.minimum(by_plan.mlps, dense.mlps).sum() + by_plan.others
    speedup = float((without.mlps.sum() + without.others) / best)
    nothing = len(slower) == len(dense.mlps) and by_plan.others >= without.others
    return BreakEven(tuple(slower.tolist()), 1.0 if nothing else speedup)


def time_in_turn(
    settings: Sequence[tuple[NativeExecutor, bool]], tokens: NDArray[np.int32], *, attention: bool
) -> list[Times]:
    """Of each (model, by its plan or dense), one after the other in every round; the fastest of `ROUNDS` each."""
    caches = [executor.new_cache() for executor, _ in settings]
    config = settings[0][0].config
    logits = np.empty((1, config.vocab_size), np.float32)
    steps = min(STEPS, config.max_context)
    seen: list[list[Times]] = [[] for _ in settings]
    for _ in range(ROUNDS + 1):
        for (executor, sparse), cache, found in zip(settings, caches, seen, strict=True):
            if cache.length + steps > config.max_context:
                cache.truncate(0)
            start = cache.length
            # Untimed: the threads of the other executor spin for a moment longer, and compete with this one's.
            executor.step(tokens[:1], cache, logits, sparse=sparse)
            cache.truncate(start)
            executor.reset_stats()
            for i in range(start, start + steps):
                executor.step(tokens[i % len(tokens) :][:1], cache, logits, sparse=sparse)
            mlps, head, rest = executor.part_seconds()
            found.append(Times(mlps, head + rest if attention else head))
    return [  # without the first round, which warms up
        Times(np.min([t.mlps for t in found[1:]], axis=0), min(t.others for t in found[1:])) for found in seen
    ]


def _key(executor: NativeExecutor, plan: AccessPlan) -> str:
    facts: dict[str, Any] = summarize(plan) | {"evidence": None, "name": None}
    runs = [executor.packed.codec, executor.kv_dtype, executor.threads, executor.isa]
    where = [describe_machine().cpu, package_version(), VERSION]
    return hashlib.sha256(json.dumps([facts, runs, where], sort_keys=True).encode()).hexdigest()


def _recall(memory: Path, key: str) -> BreakEven | None:
    try:
        known = json.loads(memory.read_bytes())[key]
        return BreakEven(tuple(int(i) for i in known["dense"]), float(known["speedup"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(memory: Path, key: str, found: BreakEven) -> None:
    try:
        known = json.loads(memory.read_bytes())
        if not isinstance(known, dict):
            known = {}
    except (OSError, ValueError):
        known = {}
    with contextlib.suppress(CacheError), atomic_write(memory) as stream:
        stream.write(json.dumps(known | {key: dataclasses.asdict(found)}).encode())
