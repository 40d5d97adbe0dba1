"""Opening a model for a verb, with progress on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dejavu.cli.output import print_note

if TYPE_CHECKING:
    from dejavu.cli.options import CodecName, ExecutorName, KvName
    from dejavu.engine.break_even import BreakEven
    from dejavu.llm import LLM


def open_llm(
    model: str,
    *,
    codec: CodecName,
    kv: KvName,
    threads: int | None = None,
    context: int | None = None,
    executor: ExecutorName,
    plan: str,
    fallback: bool = False,
    offline: bool,
    quiet: bool,
) -> LLM:
    """`LLM.from_pretrained`, with progress bars and notes unless `quiet`.

    `fallback` False, as for everything that measures a plan: all of it runs.

    `offline` False leaves the choice to the environment (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE).
    """
    from dejavu.cli.progress import make_progress
    from dejavu.llm import LLM

    llm = LLM.from_pretrained(
        model,
        codec=codec.value,
        kv_dtype=kv.value,
        threads=threads,
        context=context,
        executor=executor.value,
        plan=plan,
        fallback=fallback,
        offline=offline or None,
        progress=make_progress(quiet=quiet),
    )
    if llm.break_even is not None and not quiet:
        _say_fallback(llm.break_even, llm)
    elif plan == "auto" and llm.plan is None:
        _say_skipped(model, offline or None, llm.codec)
    return llm


def _say_skipped(model: str, offline: bool | None, codec: str | None) -> None:
    """That the model's own plan does not run: it was made for another codec, or not for these weights."""
    from dejavu.models.sources import resolve
    from dejavu.plan.choice import OWN, own_plans

    own = own_plans(resolve(model, offline=offline)).get(Path(OWN))
    made_for = None if own is None else own.evidence.get("codec")
    if made_for not in (None, codec):
        print_note(
            f"running dense: the model's own plan was made for {made_for} "
            f"(leave --codec out, or take it all the same with --plan {OWN})"
        )
    elif own is not None:
        print_note(f"running dense: the model's own plan is not for these weights in {codec}")


def _say_fallback(found: BreakEven, llm: LLM) -> None:
    layers = llm.executor.config.n_layers
    if llm.plan is None:
        print_note("the plan does not pay on this machine: running dense (--no-fallback runs it)")
    elif found.dense:
        print_note(
            f"{len(found.dense)} of {layers} layers run dense: the plan does not pay there on this machine "
            "(--no-fallback runs it all)"
        )
