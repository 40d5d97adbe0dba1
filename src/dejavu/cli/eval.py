"""dejavu eval."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dejavu.cli import options
from dejavu.cli.eval_table import print_results
from dejavu.cli.options import CodecName, ExecutorName, KvName
from dejavu.cli.output import print_json, print_note
from dejavu.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dejavu.evaluation.results_file import ResultsFile
    from dejavu.evaluation.suite import Base, Share
    from dejavu.llm import LLM
    from dejavu.training.progress import Progress


def evaluate(
    model: options.Model,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Names in --task-folder, .jsonl files, or paper (the eight of the Deja Vu paper); separated by commas or "
            "repeated."
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help=f"For perplexity. {options.TEXT_HELP}; may be repeated."),
    ] = None,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH|off|auto",
            help="Access plan to run by; repeat it to compare: --plan off --plan PLAN. Default: auto, the model's own.",
        ),
    ] = None,
    task_folder: Annotated[Path, typer.Option(help="Where names of --tasks are looked up.")] = Path("tasks"),
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many items of each task.")
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="i/n", help="Only every n-th item and window, from the i-th on.")
    ] = "1/1",
    tokens: Annotated[int, typer.Option(help="Most tokens scored of each text; 0: all.")] = 20_000,
    window: Annotated[
        int | None, typer.Option(help="Most tokens of context in texts; default: 1024.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The dense base that predictions on texts are compared with, such as what MODEL was adapted from. "
            "Default: MODEL itself.",
        ),
    ] = None,
    base_codec: Annotated[
        str,
        typer.Option(metavar="CODEC|off", help="Of the base; off: predictions are compared with nothing."),
    ] = "f32",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens generated for a prompt of a task.")
    ] = 64,
    spot_check: Annotated[
        int,
        typer.Option(
            min=0, help="Score so many items again token by token, and show the largest difference."
        ),
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A .json file for the results; finished items go beside it."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the finished items beside --output.")
    ] = False,
    codec: Annotated[
        list[CodecName] | None,
        typer.Option(
            help="Precision of the weights; auto: what the first plan that says so was made for, else what suits the "
            "model's file; repeat it to compare."
        ),
    ] = None,
    kv: options.Kv = KvName.f16,
    threads: options.Threads = None,
    executor: options.Executor = ExecutorName.native,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Judge a model on tasks and texts.

    Accuracies with standard errors, perplexity, and how far the predictions are from those of the dense f32 model.
    Under a plan every token that is scored selects for itself, as in decoding.
    """
    from dejavu.bench.plans import plan_digest, suited_codec
    from dejavu.cli.loading import open_llm
    from dejavu.cli.progress import make_progress, stage_bars
    from dejavu.codecs import CODECS
    from dejavu.engine.core import chosen_isa
    from dejavu.environment import package_version
    from dejavu.evaluation.journal import Journal
    from dejavu.evaluation.record import SCHEMA, Setting, Workload, evaluate, options_digest
    from dejavu.evaluation.results_file import KIND
    from dejavu.evaluation.tasks import find_tasks, read_tasks
    from dejavu.models.loading import fetch, open_model
    from dejavu.texts import read_documents

    names = [name for entry in tasks or [] for name in entry.split(",") if name]
    workload = Workload(
        tasks=tuple(read_tasks(names, task_folder)),
        texts=tuple((path.name, tuple(read_documents(path))) for path in text or []),
        share=_share(limit, shard),
        tokens=tokens or None,
        window=window,
        max_tokens=max_tokens,
        spot_check=spot_check,
    )
    if base_codec not in ("off", *CODECS):
        raise InputError(f"--base-codec {base_codec}", fix=f"choose off, {', '.join(CODECS)}")
    if base is not None and (base_codec == "off" or not workload.texts):
        raise InputError(
            "--base is for comparing predictions on texts", fix="give --text, and a --base-codec"
        )
    results = _results_file(output, [*find_tasks(names, task_folder), *(text or [])], resume=resume)
    items = results.items if results else None
    path = fetch(model, offline=offline or None, progress=make_progress(quiet=json))
    base_path = (
        path if base is None else fetch(base, offline=offline or None, progress=make_progress(quiet=json))
    )
    exact = executor is ExecutorName.reference
    plans, codecs = plan or ["auto"], [c.value for c in codec or [CodecName.auto]]
    opened = open_model(path)
    try:
        fingerprint = opened.weights.fingerprint
        if CodecName.auto.value in codecs:
            suited = suited_codec(plans, opened.weights, path, exact=exact)
            codecs = [suited if c == CodecName.auto.value else c for c in codecs]
    finally:
        opened.close()
    wanted = [(c, p) for c in dict.fromkeys(codecs) for p in plans]
    shared: dict[str, Any] = {
        "kv": kv,
        "threads": threads,
        "executor": executor,
        "offline": offline,
        "quiet": json,
    }
    runs: list[dict[str, Any]] = []
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(items, resume=resume))
        beside, first = None, None
        for number, (held, planned) in enumerate(wanted, start=1):
            with (
                open_llm(str(path), codec=CodecName(held), plan=planned, **shared) as llm,
                stage_bars(quiet=json) as progress,
            ):
                itself = base is None and llm.plan is None and base_codec == held
                compare = workload.texts and base_codec != "off" and not itself
                if compare and beside is None:
                    base_llm = open_llm(str(base_path), codec=CodecName(base_codec), plan="off", **shared)
                    beside = _base(stack.enter_context(base_llm), llm, base, base_codec, base_path)
                try:
                    run = evaluate(
                        llm,
                        Setting(
                            fingerprint,
                            options_digest(llm),
                            held,
                            kv.value,
                            executor.value,
                            plan_digest(llm.plan),
                            package_version(),
                            None if exact else chosen_isa(),
                        ),
                        workload,
                        journal,
                        base=beside if compare else None,
                        begin=partial(_begin, progress, f"run {number} of {len(wanted)}"),
                    )
                except KeyboardInterrupt:
                    if items is not None:
                        print_note(f"stopped; finished items are in {items}: run it again with --resume")
                    raise
            first = first or run
            difference = {} if run is first else {"difference": run.minus(first)}
            runs.append({"name": _name(held, planned, llm.plan)} | run.record | difference)
    document = {
        "schema": SCHEMA,
        "kind": KIND,
        "model": model,
        "fingerprint": fingerprint,
        "executor": executor.value,
        "kv_dtype": kv.value,
        "limit": limit,
        "shard": shard,
        "window": window,
        "runs": runs,
        **_circumstances(),
    }
    if results is not None:
        results.save(document)
    if json:
        print_json(document)
        return
    print_results(document)
    if not any(entry["metrics"] for part in ("tasks", "texts") for entry in runs[0][part].values()):
        print_note("nothing was scored: every item was skipped, or there is none in the shard")
    generated = [t["metrics"] for t in runs[0]["tasks"].values() if t["kind"] == "generation"]
    if any("bleu" not in metrics for metrics in generated):
        print_note("no BLEU: pip install sacrebleu, or '.[eval]' in a clone of dejavu")
    if output is None:
        print_note("Give -o FILE.json to keep the results, and to be able to --resume.")
    else:
        print_note(
            f"wrote {output}; next: dejavu bench {shlex.quote(model)} for the speed of the same weights"
        )


def _begin(progress: Progress, stage: str, total: int) -> Callable[[int, str], None]:
    progress.start(stage, total)
    return progress.advance


def _base(llm: LLM, subject: LLM, model: str | None, codec: str, path: Path) -> Base:
    """What texts are compared with. Raises `InputError` if it has other tokens than `subject`."""
    from dejavu.evaluation.record import options_digest
    from dejavu.evaluation.suite import Base
    from dejavu.models.loading import open_model

    ours, theirs = ((x.tokenizer.vocabulary, x.executor.config.vocab_size) for x in (llm, subject))
    if ours != theirs:
        raise InputError(
            f"the base {model} has other tokens, so predictions cannot be compared",
            fix="take as --base the model that this one was made from",
        )
    opened = open_model(path)
    try:
        key = f"{opened.weights.fingerprint[:16]}:{options_digest(llm)}"
        return Base(llm, codec if model is None else f"{model}, {codec}", key)
    finally:
        opened.close()


def _share(limit: int | None, shard: str) -> Share:
    from dejavu.evaluation.suite import Share

    part, slash, of = shard.partition("/")
    if not (slash and part.isdecimal() and of.isdecimal()):
        raise InputError(f"--shard {shard}", fix="give i/n, such as --shard 1/4")
    return Share(limit, int(part), int(of))


def _results_file(output: Path | None, inputs: list[Path], *, resume: bool) -> ResultsFile | None:
    """Where results go, checked."""
    from dejavu.evaluation.results_file import ResultsFile

    if output is None:
        if resume:
            raise InputError("--resume without --output", fix="give the -o of the run to go on with")
        return None
    results = ResultsFile(output)
    results.check(inputs, resume=resume)
    return results


def _name(codec: str, wanted: str, plan: Any) -> str:
    return codec if plan is None else f"{codec}, {plan.name or Path(wanted).name}"


def _circumstances() -> dict[str, Any]:
    import dataclasses

    from dejavu.environment import describe_machine, versions

    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": shlex.join(["dejavu", *sys.argv[1:]]),
        "machine": dataclasses.asdict(describe_machine()),
        "versions": versions(),
    }
