"""dejavu analyze."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dejavu.cli import options
from dejavu.cli.options import CodecName, ExecutorName, KvName
from dejavu.cli.output import print_json, print_note

if TYPE_CHECKING:
    from collections.abc import Mapping


def analyze(
    model: options.Model,
    text: Annotated[Path, typer.Option(help=f"{options.TEXT_HELP}.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder to write analysis.json and report.html into."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Stop reading the text after so many tokens.")] = 8192,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of random selections and of samples.")] = 0,
    codec: options.Codec = CodecName.auto,
    kv: options.Kv = KvName.f16,
    threads: options.Threads = None,
    executor: options.Executor = ExecutorName.native,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Measure how sparse a model is, token by token.

    The first half of the text says which neurons and heads are used on the whole; on the second half only a part of
    them is computed, and what that costs in perplexity is measured.
    """
    from dejavu.analysis import analyze as run
    from dejavu.analysis import describe_run, split_pieces, workload, write_analysis
    from dejavu.cli.loading import open_llm
    from dejavu.cli.progress import make_progress, token_bar
    from dejavu.evaluation.perplexity import encode_documents
    from dejavu.models.loading import fetch, open_model
    from dejavu.models.writing import check_folder
    from dejavu.opening import natural_codec
    from dejavu.texts import read_documents

    texts = read_documents(text)
    if output is not None:
        check_folder(output)
    path = fetch(model, offline=offline or None, progress=make_progress(quiet=json))
    opened = open_model(path)
    try:
        with open_llm(
            str(path),
            codec=codec,
            kv=kv,
            threads=threads,
            executor=executor,
            plan="off",
            offline=offline,
            quiet=json,
        ) as llm:
            pieces = split_pieces(encode_documents(llm.tokenizer, texts, limit=tokens), llm.executor.config)
            natural = "f32" if executor is ExecutorName.reference else natural_codec(opened.weights)
            facts = describe_run(
                model=model,
                text=text,
                codec=natural if codec is CodecName.auto else codec.value,
                kv_dtype=kv.value,
                executor=executor.value,
                command=shlex.join(["dejavu", *sys.argv[1:]]),
            )
            with token_bar(workload(pieces, llm.executor.config), quiet=json, doing="analyzing") as advance:
                document = run(llm.executor, opened.weights, pieces, facts=facts, seed=seed, progress=advance)
    finally:
        opened.close()
    if output is not None:
        write_analysis(document, output)
    if json:
        print_json(document)
        return
    _print_verdict(document)
    if output is None:
        print_note("Give -o FOLDER for the report with all figures.")
    else:
        print_note(f"Wrote {output / 'report.html'} and {output / 'analysis.json'}.")


def _print_verdict(document: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from dejavu.analysis.tables import quality_table

    console = Console(highlight=False)
    for part in ("neurons", "heads", "both"):
        values = quality_table(document, part)
        table = Table(title=values.caption, title_justify="left", title_style="dim")
        for number, header in enumerate(values.headers):
            table.add_column(header, justify="right" if number else "left")
        for row in values.rows:
            table.add_row(*row)
        console.print(table)
    for number, sentence in enumerate(document["verdict"]):
        console.print(sentence, style="" if number else "bold")
