"""dejavu pull."""

from __future__ import annotations

from typing import Annotated

import typer

from dejavu.cli import options
from dejavu.cli.output import print_json


def pull(
    model: options.Model,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Fetch a model into the cache."""
    from dejavu.cli.progress import make_progress
    from dejavu.models.loading import kind_of
    from dejavu.models.sources import resolve

    path = resolve(model, revision=revision, offline=offline or None, progress=make_progress(quiet=json))
    kind_of(path)  # raises where a folder holds no model
    if json:
        print_json({"model": model, "path": str(path)})
    else:
        print(path)
