"""dejavu list and dejavu rm: the models in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dejavu.cli import options
from dejavu.cli.output import print_json, print_note, print_table

if TYPE_CHECKING:
    from dejavu.models.packs import PackedModel
    from dejavu.models.store import StoredModel


def list_models(json: options.Json = False) -> None:
    """List the models that were pulled, and what is packed of models that lie elsewhere."""
    from dejavu.models import store
    from dejavu.models.packs import list_packed
    from dejavu.units import human_bytes

    models, packs = store.list_models(), list_packed()
    if json:
        print_json(
            {"models": [_record(model) for model in models], "packed": [_pack(pack) for pack in packs]}
        )
        return
    if models:
        print_table(
            ("model", "size", "pulled", "path"),
            [
                (m.spec, human_bytes(m.bytes), f"{m.when.astimezone():%Y-%m-%d %H:%M}", str(m.path))
                for m in models
            ],
        )
    else:
        print_note("No models yet. Try: dejavu pull smollm2")
    if packs:
        if models:
            print()
        print_table(("packed weights of", "size", "model"), [_row(pack) for pack in packs])


def remove(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A name that `dejavu list` shows, or a path of which weights are packed."
        ),
    ],
    json: options.Json = False,
) -> None:
    """Delete a pulled model; of a model that lies elsewhere, its packed weights alone."""
    from dejavu.models import store
    from dejavu.models.packs import remove_packed
    from dejavu.units import human_bytes

    packs = remove_packed(model)
    removed = [] if packs else store.remove(model)
    if json:
        print_json({"removed": [_record(m) for m in removed], "packed": [_pack(pack) for pack in packs]})
        return
    for m in removed:
        print(f"removed {m.spec} ({human_bytes(m.bytes)})")
    for pack in packs:
        print(f"removed packed weights of {pack.source or pack.folder} ({human_bytes(pack.bytes)})")


def _row(pack: PackedModel) -> tuple[str, str, str]:
    from dejavu.units import human_bytes

    state = "not known" if pack.source is None else "is there" if pack.source_exists else "is gone"
    return str(pack.source or pack.folder), human_bytes(pack.bytes), state


def _pack(pack: PackedModel) -> dict[str, Any]:
    return {
        "path": None if pack.source is None else str(pack.source),
        "folder": str(pack.folder),
        "bytes": pack.bytes,
        "source_exists": pack.source_exists,
    }


def _record(model: StoredModel) -> dict[str, Any]:
    return {
        "model": model.spec,
        "path": str(model.path),
        "bytes": model.bytes,
        "when": model.when.isoformat(),
    }
