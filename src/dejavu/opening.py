"""How a model is opened to run: in which codec, by which of its plans, and whether the plan pays on this machine."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.codecs import CODECS
from dejavu.plan.choice import OWN, choose_plan
from dejavu.plan.storage import PLAN_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from dejavu.codecs import Codec
    from dejavu.engine import NativeExecutor
    from dejavu.engine.break_even import BreakEven
    from dejavu.models.weights import Weights
    from dejavu.plan import AccessPlan
    from dejavu.tokenizer import Tokenizer


def open_native(
    path: Path, tokenizer: Tokenizer, plan: AccessPlan | None, *, fallback: bool, cache: bool, **options: Any
) -> tuple[NativeExecutor, AccessPlan | None, BreakEven | None]:
    """The native executor, what of `plan` is to run on it, and what was measured for that."""
    from dejavu.engine import NativeExecutor
    from dejavu.engine.break_even import SAMPLE, break_even
    from dejavu.engine.native import break_even_path

    def load(leading: int) -> NativeExecutor:
        return NativeExecutor.load(path, leading=leading, cache=cache, **options)

    leading = plan.leading if plan is not None else 0
    runs = load(leading)
    if plan is None or not fallback:
        return runs, plan, None
    try:
        runs.set_plan(plan)
        tokens = np.array(tokenizer.encode(SAMPLE), np.int32)
        memory = break_even_path(path) if cache else None
        found = break_even(runs, plan, lambda: load(0) if leading else runs, tokens, memory)
        left = found.apply(plan)
    except BaseException:
        runs.close()
        raise
    if left is None and leading:
        runs.close()
        runs = load(0)
    elif left is None:
        runs.set_plan(None)
    return runs, left, found


def made_for(
    plan: AccessPlan | Path | str, weights: Weights, model: Path
) -> tuple[Codec | None, AccessPlan | Path | str]:
    """The codec that a given plan, or a model's own, was made for (None: there is none, or it does not say), and the plan.

    Plans that come with dejavu do not count: they follow the codec. A plan that was read for this is returned as read.
    """
    if plan == "auto" and not (model / OWN / PLAN_NAME).is_file():
        return None, plan
    found = choose_plan(plan, weights, None, model)
    said = None if found is None else found.evidence.get("codec")
    codec = next((known for known in CODECS if known == said), None)
    return codec, plan if found is None or codec is None or not found.suits(codec) else found


def natural_codec(weights: Weights) -> Codec:
    """The codec closest to how most of the linears are stored: 4 bits int4, 5 to 8 bits int8, floats bf16."""
    entries: Counter[str] = Counter()
    for name in weights.names():
        shape = weights.shape(name)
        if name.startswith("layers.") and len(shape) == 2:
            entries[weights.source_type(name)] += shape[0] * shape[1]
    kind = entries.most_common(1)[0][0] if entries else "F32"
    if kind.startswith("Q4"):
        return "int4"
    return "int8" if kind.startswith("Q") else "bf16"
