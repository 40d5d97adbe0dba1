"""Packed weights of models that lie elsewhere: their folders in the cache say where, so that `list` and `rm` find them.

``packed/<name>-<key>/source.json`` has the path of the model that the packed forms beside it were made from.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from dejavu.errors import CacheError, InputError
from dejavu.models.spec import ALIASES
from dejavu.models.store import (
    atomic_write,
    delete_folder,
    expand_path,
    list_models,
    packed_folder,
    packed_root,
    unreadable,
)

SOURCE_NAME = "source.json"


@dataclass(frozen=True)
class PackedModel:
    """Packed weights of a model that is not stored: of a folder or file of the user's, which may be gone."""

    source: Path | None
    """Where the model lies; None: not known, as of packs that earlier versions wrote."""
    folder: Path
    """Of the packed forms."""
    bytes: int

    @property
    def source_exists(self) -> bool:
        """Whether the model is still there, as far as is known."""
        try:
            return self.source is not None and self.source.exists()
        except OSError:
            return True


def note_source(path: Path) -> None:
    """Write beside the packed forms of the model at `path` what they were made from, unless it says so already.

    A cache that cannot be written stays as it is: `list` shows such packs without their source.
    """
    note = packed_folder(path) / SOURCE_NAME
    with contextlib.suppress(CacheError, OSError):
        if not note.exists():
            with atomic_write(note) as stream:
                stream.write(json.dumps({"source": str(path.resolve())}).encode())


def list_packed() -> list[PackedModel]:
    """Packed weights of models that are not stored, by where these lie.

    Raises:
        CacheError: the cache cannot be read.
    """
    kept = {packed_folder(model.path) for model in list_models()}
    try:
        folders = [path for path in packed_root().iterdir() if path.is_dir() and path not in kept]
        found = [
            PackedModel(_source(folder), folder, sum(file.stat().st_size for file in folder.iterdir()))
            for folder in folders
        ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(error) from error
    return sorted(found, key=lambda pack: str(pack.source or pack.folder))


def _source(folder: Path) -> Path | None:
    try:
        return Path(json.loads((folder / SOURCE_NAME).read_bytes())["source"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None


def remove_packed(name: str) -> list[PackedModel]:
    """Delete the packed weights of the local model `name`, or in the folder of that name; returns them.

    The model itself, and what is packed of stored models, stay. Nothing is deleted where nothing is packed.

    Raises:
        CacheError: they cannot be deleted.
    """
    try:
        path = expand_path(ALIASES.get(name, name)).resolve()
    except (InputError, OSError, RuntimeError):  # no path is not packed either
        return []
    chosen = [pack for pack in list_packed() if pack.folder in (packed_folder(path), path)]
    for pack in chosen:
        delete_folder(pack.folder)
    return chosen
