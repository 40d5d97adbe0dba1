"""dejavu list and dejavu rm: the models in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dejavu.cli import options
from dejavu.cli.output import print_json, print_note, print_table

if TYPE_CHECKING:
    from dejavu.models.store import StoredModel


def list_models(json: options.Json = False) -> None:
    """List the models that were pulled."""
    from dejavu.models import store
    from dejavu.units import human_bytes

    models = store.list_models()
    if json:
        print_json({"models": [_record(model) for model in models]})
    elif models:
        print_table(
            ("model", "size", "pulled", "path"),
            [
                (m.spec, human_bytes(m.bytes), f"{m.when.astimezone():%Y-%m-%d %H:%M}", str(m.path))
                for m in models
            ],
        )
    else:
        print_note("No models yet. Try: dejavu pull smollm2")


def remove(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name that `dejavu list` shows.")],
    json: options.Json = False,
) -> None:
    """Delete a pulled model."""
    from dejavu.models import store
    from dejavu.units import human_bytes

    removed = store.remove(model)
    if json:
        print_json({"removed": [_record(m) for m in removed]})
    else:
        for m in removed:
            print(f"removed {m.spec} ({human_bytes(m.bytes)})")


def _record(model: StoredModel) -> dict[str, Any]:
    return {
        "model": model.spec,
        "path": str(model.path),
        "bytes": model.bytes,
        "when": model.when.isoformat(),
    }
