"""Opening a model for a verb, with progress on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dejavu.cli.options import CodecName, ExecutorName, KvName
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
    offline: bool,
    quiet: bool,
) -> LLM:
    """`LLM.from_pretrained`, with progress bars unless `quiet`.

    `offline` False leaves the choice to the environment (HF_HUB_OFFLINE).
    """
    from dejavu.cli.progress import make_progress
    from dejavu.llm import LLM

    return LLM.from_pretrained(
        model,
        codec=codec.value,
        kv_dtype=kv.value,
        threads=threads,
        context=context,
        executor=executor.value,
        plan=plan,
        offline=offline or None,
        progress=make_progress(quiet=quiet),
    )
