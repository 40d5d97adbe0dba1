"""dejavu perplexity."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dejavu.cli import options
from dejavu.cli.options import CodecName, ExecutorName, KvName
from dejavu.cli.output import print_json, print_note, print_table
from dejavu.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dejavu.evaluation.perplexity import Perplexity
    from dejavu.llm import LLM


class PathName(str, Enum):
    """Values of --path."""

    prefill = "prefill"
    decode = "decode"
    masked = "masked"


def perplexity(
    model: options.Model,
    text: Annotated[
        list[Path],
        typer.Option(help=f"{options.TEXT_HELP}; may be repeated."),
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
    limit: Annotated[int | None, typer.Option(help="Stop after so many scored tokens of a text.")] = None,
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
    beginning (BOS if the model has one); each token counts once. Each text has a figure of its own.
    """
    from dejavu.cli.loading import open_llm
    from dejavu.cli.progress import token_bar
    from dejavu.evaluation.perplexity import encode_documents, measure_perplexity
    from dejavu.texts import read_documents

    names = [file.name for file in text]
    if len(set(names)) < len(names):
        raise InputError("two texts have the same name", fix="rename one of the files")
    texts = [read_documents(file) for file in text]
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
        chosen = _path(path, planned=llm.plan is not None)
        encoded = [encode_documents(llm.tokenizer, documents, limit=limit) for documents in texts]
        with token_bar(sum(d.scored for documents in encoded for d in documents), quiet=json) as advance:
            results = [
                measure_perplexity(
                    llm.executor, documents, path=chosen.value, window=window, stride=stride, progress=advance
                )
                for documents in encoded
            ]
        held = llm.codec or codec.value
        about = _about_plan(llm)
    if json:
        facts: dict[str, object] = {
            "model": model,
            "codec": held,
            "kv_dtype": kv.value,
            **(results[0].to_dict() if len(results) == 1 else {}),
            "texts": [
                {"name": name, **result.to_dict()} for name, result in zip(names, results, strict=True)
            ],
            **about,
        }
        print_json(facts)
        return
    if len(results) == 1:
        print(f"perplexity {results[0].perplexity:.4f}")
    else:
        rows = [
            (name, f"{r.perplexity:.4f}", str(r.tokens), str(len(r.documents)), f"{r.nll:.4f}")
            for name, r in zip(names, results, strict=True)
        ]
        print_table(("text", "perplexity", "tokens", "documents", "nats per token"), rows)
    print_note(_summary(results, held, about))


def _path(wanted: PathName | None, *, planned: bool) -> PathName:
    """The path to score by: that of --path, or what suits the model. Raises `InputError` if a plan decides otherwise."""
    if wanted is None:
        return PathName.masked if planned else PathName.prefill
    if wanted is PathName.prefill and planned:
        raise InputError(
            "the prefill path is dense: the plan would not run",
            fix="use --path masked or decode, or --plan off",
        )
    if wanted is PathName.masked and not planned:
        raise InputError(
            "the masked path runs a plan, and there is none", fix="give --plan PLAN, or use --path prefill"
        )
    return wanted


def _about_plan(llm: LLM) -> dict[str, Any]:
    """What --json says of the plan that ran: its name, the mean share of the neurons, and the counters."""
    if llm.plan is None:
        return {}
    stats = llm.executor.last_stats
    density = sum(stats["neurons"]) / len(stats["neurons"])
    return {"plan": llm.plan.name, "plan_density": density, "plan_stats": stats}


def _summary(results: list[Perplexity], codec: str, about: Mapping[str, Any]) -> str:
    first = results[0]
    plan = (
        f"plan {about['plan'] or '(no name)'}, {about['plan_density']:.1%} of the neurons"
        if about
        else "no plan"
    )
    documents = sum(len(result.documents) for result in results)
    parts = [
        f"{sum(r.tokens for r in results)} tokens of {documents} document{'s' * (documents != 1)} scored by {first.path}",
        f"window {first.window}, stride {first.stride}",
        *([f"{first.nll:.4f} nats per token"] if len(results) == 1 else []),
        f"codec {codec}",
        plan,
    ]
    return "; ".join(parts)
