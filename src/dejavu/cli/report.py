"""dejavu report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dejavu.cli import options
from dejavu.cli.output import print_json, print_note
from dejavu.errors import CacheError, InputError


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT...",
            help="Of eval -o, bench --json, analyze -o, train -o (the plan), adapt -o (--frontier too), "
            "and benchmarks/frontier.py --out.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    title: Annotated[str | None, typer.Option(help="Of the page; default: the model's name.")] = None,
    json: options.Json = False,
) -> None:
    """Show results of one model on one page: quality against speed, tasks, speeds, plans, adaptation, analysis.

    The page is one file that fetches nothing. Files are known by their content; what is missing is named on the page, with
    the command that makes it.
    """
    from dejavu.models.store import atomic_write
    from dejavu.results_page import collect, describe, render_page
    from dejavu.results_page.reading import place

    collection = collect(results)
    if os.path.isdir(output):  # noqa: PTH112 - False where it may not be looked at: writing will say why
        raise InputError(f"{output} is a folder", fix="give a file, such as -o report.html")
    if any(place(output) == place(source.path) for source in collection.sources):
        raise InputError(f"{output} is one of the results", fix="give another file with -o")
    page = render_page(collection, title)
    try:
        with atomic_write(output) as stream:
            stream.write(page.encode())
    except CacheError as error:
        raise CacheError(str(error.args[0]), fix="give another file with -o") from error
    facts = describe(collection)
    if json:
        print_json({"output": str(output), **facts})
        return
    print(f"wrote {output}: {len(collection.sources)} results of {collection.model}")
    for entry in facts["missing"]:
        print_note(f"{entry['what']} {entry['command']}")
