"""dejavu pull."""

from __future__ import annotations

from typing import Annotated

import typer

from dejavu.cli import options
from dejavu.cli.output import print_json


def pull(
    model: options.Model,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask for a newer version or commit, though one is stored.")
    ] = False,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Fetch a model into the cache; of a delta or an adapter, its base too."""
    from dejavu.cli.progress import make_progress
    from dejavu.models.loading import fetch

    path = fetch(
        model,
        revision=revision,
        offline=offline or None,
        refresh=refresh,
        progress=make_progress(quiet=json),
    )
    if json:
        print_json({"model": model, "path": str(path)})
    else:
        print(path)
