"""How a model is opened to run: in which codec, by which of its plans, and whether the plan pays on this machine."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dejavu.arguments import refusal
from dejavu.codecs import CODECS
from dejavu.models.spec import FORMS
from dejavu.plan import AccessPlan
from dejavu.plan.choice import choose_plan
from dejavu.refinement import refine

if TYPE_CHECKING:
    from dejavu.codecs import Codec
    from dejavu.engine import NativeExecutor
    from dejavu.engine.break_even import BreakEven
    from dejavu.executor import KvDtype
    from dejavu.models.loading import OpenModel
    from dejavu.models.weights import Weights
    from dejavu.reference.executor import ReferenceExecutor
    from dejavu.tokenizer import Tokenizer


def name_of(model: object) -> str:
    """What `resolve` is to look up for `model`. A path stays one: it is never taken for an alias or a hub id.

    Raises:
        InputError: it is neither a str nor a path.
    """
    if isinstance(model, str):
        return model
    path = _path(model)
    if path is None:
        raise refusal("model", model, f"a str or a path: {FORMS}")
    return str(path if str(path).startswith("~") else path.absolute())


def wanted_plan(plan: object) -> AccessPlan | Path | str:
    """The plan that is asked for, as `choose_plan` takes it; None is "off".

    Raises:
        InputError: it is none of the forms of a plan.
    """
    if plan is None:
        return "off"
    wanted = plan if isinstance(plan, (AccessPlan, str)) else _path(plan)
    if wanted is None:
        raise refusal(
            "plan", plan, 'an AccessPlan, the path of its folder, "auto", or "off" or None for dense'
        )
    return wanted


def check_progress(progress: object) -> None:
    """Refuse what has not the methods of a `Progress`.

    Raises:
        InputError: one is missing.
    """
    steps = ("start", "advance", "finish")
    if progress is not None and not all(callable(getattr(progress, step, None)) for step in steps):
        raise refusal("progress", progress, f"None, or an object with the methods {', '.join(steps)}")


def _path(value: object) -> Path | None:
    text = os.fspath(value) if isinstance(value, os.PathLike) else None
    return Path(text) if isinstance(text, str) else None  # there are paths of bytes


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


def open_reference(opened: OpenModel, codec: Codec, kv_dtype: KvDtype) -> ReferenceExecutor:
    """The reference executor, whose weights have been through `codec`."""
    from dejavu.reference.executor import ReferenceExecutor

    config, weights = refine(opened.config, opened.weights, codec)
    return ReferenceExecutor(config, weights, codec=codec, kv_dtype=kv_dtype)


def codec_and_plan(
    codec: Codec | Literal["auto"],
    plan: AccessPlan | Path | str,
    weights: Weights,
    model: Path,
    *,
    exact: bool,
) -> tuple[Codec, AccessPlan | None]:
    """The codec to hold `weights` in, and the plan to run them by: what `LLM.from_pretrained` means by "auto".

    Args:
        codec: the one that is wanted.
        plan: what is wanted, as for `choose_plan`.
        weights: of the model.
        model: where it lies.
        exact: "auto" is float32 where no plan says otherwise, as for the reference executor.

    Raises:
        PlanError: as `choose_plan`.
    """
    if codec == "auto":
        made, plan = made_for(plan, weights, model)
        codec = made or ("f32" if exact else natural_codec(weights))
    return codec, choose_plan(plan, weights, codec, model)


def made_for(
    plan: AccessPlan | Path | str, weights: Weights, model: Path
) -> tuple[Codec | None, AccessPlan | Path | str]:
    """The codec that a given plan, or a model's own, was made for (None: there is none, or it does not say), and the plan.

    A plan that was read for this is returned as read.
    """
    found = choose_plan(plan, weights, None, model)
    if found is None:
        return None, plan
    codec = next((known for known in CODECS if known == found.evidence.get("codec")), None)
    fits = codec is not None and found.suits(codec)
    return codec, found if fits or plan != "auto" else plan


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
