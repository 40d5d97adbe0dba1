"""dejavu bench."""

from __future__ import annotations

import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dejavu.cli import options
from dejavu.cli.output import print_note, print_table
from dejavu.errors import InputError


class OutputName(str, Enum):
    """Values of --output."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help=f"{options.MODEL_HELP} Default: smollm2.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="Instead of a model: synthetic weights in the shape of opt-1.3b, opt-6.7b, llama-1b, ..."
        ),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Prompt tokens to process; 0: none.")] = "512",
    steps: Annotated[str, typer.Option("--steps", "-n", help="Tokens to generate; 0: none.")] = "128",
    batch: Annotated[str, typer.Option("--batch", "-b", help="Sequences decoded together.")] = "1",
    depth: Annotated[str, typer.Option("--depth", "-d", help="Tokens in the cache before generating.")] = "0",
    repeats: Annotated[int, typer.Option("--repeats", "-r", help="Times that everything is measured.")] = 5,
    codec: Annotated[
        str | None,
        typer.Option(help="f32, bf16, int8 or int4; default: what the plan was made for, or suits the file."),
    ] = None,
    kv: Annotated[str, typer.Option("--kv", help="f32, f16, bf16 or int8.")] = "f16",
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|off|auto",
            help="Access plan to decode by: a folder, or the name of one of the model's own; off; auto. Default: off, and "
            "auto where the model has a plan of its own.",
        ),
    ] = None,
    threads: Annotated[
        str | None, typer.Option("--threads", "-t", help="Threads; default: the physical cores.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A .txt or .jsonl file to process; default: a short story.")
    ] = None,
    parts: Annotated[
        bool, typer.Option("--parts", help="Show where the time of a step goes, beside bytes / bandwidth.")
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Time another engine in the same rounds: llama.cpp, ctranslate2, transformers, torch. Repeat for several."
        ),
    ] = None,
    peer_python: Annotated[
        str, typer.Option(metavar="PYTHON", help="A Python that has the peers; default: this one.")
    ] = sys.executable,
    output: Annotated[OutputName, typer.Option("--output", "-o", help="Format.")] = OutputName.table,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Measure speed.

    pp is prompt processing, tg token generation. Lengths, codecs, caches, plans and threads may be lists such as
    128,512. Repeats are interleaved; speeds are medians, ± half the distance between the quartiles. GB/s
    counts the bytes that a step has to read: the weights, and the cache of every sequence. Quantiles of steps are
    over all repeats; the first token's time starts with an empty cache.
    """
    from dejavu.bench import details, report
    from dejavu.bench.peers.table import peer_table
    from dejavu.bench.suite import Request, run_request
    from dejavu.cli.progress import make_progress, status_line

    if json and output not in (OutputName.table, OutputName.json):
        raise InputError(f"--json and --output {output.value} are two formats", fix="leave one of them out")
    wanted = "json" if json else output.value
    request = Request(
        model=model,
        shape=shape,
        prompt=prompt,
        steps=steps,
        batch=batch,
        depth=depth,
        repeats=repeats,
        codec=codec,
        kv=kv,
        plan=plan,
        threads=threads,
        text=text,
        offline=offline or None,
        peers=tuple(peer or ()),
        peer_python=peer_python,
    )
    with status_line(quiet=json) as say:
        outcome = run_request(request, progress=make_progress(quiet=json), say=say)
    subject, results = outcome.subject, outcome.results
    for note in outcome.notes:
        print_note(note)
    tables = [details.step_table(results), details.memory_table(subject, results)]
    if parts:
        tables.append(details.part_table(results))
    peers = [peer_table(outcome.peers, results)] if outcome.peers else []
    if wanted == "table":
        print_table(report.HEADERS, report.rows(subject, results))
        for table in tables + peers:
            print(f"\n{table.title}")
            print_table(table.headers, table.rows)
        print_note(report.footnote(results))
    elif wanted == "json":
        command = shlex.join(["dejavu", *sys.argv[1:]])
        print(report.to_json(subject, results, outcome.machine, command=command, peers=outcome.peers))
    elif wanted == "csv":
        print(report.to_csv(subject, results), end="")
        for table in peers:  # of other columns
            print_note(report.table_to_markdown(table))
    else:
        print(report.to_markdown(subject, results), end="")
        for table in tables + peers:
            print(f"\n{report.table_to_markdown(table)}", end="")
