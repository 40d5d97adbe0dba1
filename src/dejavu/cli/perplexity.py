"""dejavu perplexity."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dejavu.cli import options
from dejavu.cli.options import CodecName, ExecutorName, KvName
from dejavu.cli.output import print_json, print_note


class PathName(str, Enum):
    """Values of --path."""

    prefill = "prefill"
    decode = "decode"
    masked = "masked"


def perplexity(
    model: options.Model,
    text: Annotated[
        Path, typer.Option(help='A .txt file (one document) or .jsonl lines with a "text" field.')
    ],
    path: Annotated[
        PathName | None,
        typer.Option(
            help="Score blocks densely, one token at a time as in generation, or blocks by the plan; default: prefill, "
            "masked with a plan."
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option("--window", "--context", help="Most tokens of context; default: 1024.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Distance of windows in a long document; default: no overlap.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Stop after so many scored tokens.")] = None,
    codec: options.Codec = CodecName.auto,
    kv: options.Kv = KvName.f16,
    threads: options.Threads = None,
    executor: options.Executor = ExecutorName.native,
    plan: options.Plan = "auto",
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Measure how well a model predicts text.

    Perplexity is exp of the mean negative log-likelihood of a token. Every document is scored from its own
    beginning (BOS if the model has one); each token counts once.
    """
    from dejavu.cli.loading import open_llm
    from dejavu.cli.progress import token_bar
    from dejavu.errors import InputError
    from dejavu.evaluation.perplexity import encode_documents, measure_perplexity
    from dejavu.texts import read_documents

    texts = read_documents(text)
    with open_llm(
        model,
        codec=codec,
        kv=kv,
        threads=threads,
        executor=executor,
        plan=plan,
        offline=offline,
        quiet=json,
    ) as llm:
        if path is None:
            path = PathName.prefill if llm.plan is None else PathName.masked
        if path is PathName.prefill and llm.plan is not None:
            raise InputError(
                "the prefill path is dense: the plan would not run",
                fix="use --path masked or decode, or --plan off",
            )
        documents = encode_documents(llm.tokenizer, texts, limit=limit)
        with token_bar(sum(d.scored for d in documents), quiet=json) as advance:
            result = measure_perplexity(
                llm.executor, documents, path=path.value, window=window, stride=stride, progress=advance
            )
        about = {} if llm.plan is None else {"plan": llm.plan.name, "plan_stats": llm.executor.last_stats}
    if json:
        facts: dict[str, object] = {
            "model": model,
            "codec": codec.value,
            "kv_dtype": kv.value,
            **result.to_dict(),
            **about,
        }
        print_json(facts)
        return
    print(f"perplexity {result.perplexity:.4f}")
    count = "1 document" if len(result.documents) == 1 else f"{len(result.documents)} documents"
    print_note(
        f"{result.tokens} tokens of {count} scored by {result.path}; "
        f"window {result.window}, stride {result.stride}; {result.nll:.4f} nats per token"
    )
