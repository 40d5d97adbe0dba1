"""Checkpoints: one safetensors file with the tensors, and everything else as JSON in its metadata.

One file, so that tensors and position can never be of different moments.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dejavu.errors import CacheError, DejavuError, InputError, ModelFormatError
from dejavu.models.safetensors import SafeTensors
from dejavu.models.safetensors_writer import write_safetensors
from dejavu.models.store import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.float32]]


def save_checkpoint(path: Path, arrays: Arrays, state: dict[str, Any]) -> None:
    """Replace the file at `path`, whole or not at all.

    Raises:
        CacheError: it cannot be written (disk full, ...); the checkpoint before it is still there.
    """
    try:
        with atomic_write(path) as stream:
            write_safetensors(stream, arrays, {"state": json.dumps(state)})
    except CacheError as error:
        raise CacheError(
            str(error.args[0]), fix="make room, then run the same command again with --resume"
        ) from error


def load_checkpoint(path: Path, settings: dict[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and state of the file at `path`.

    Args:
        path: written by `save_checkpoint`.
        settings: what ``state["settings"]`` must be: the same model, text and options.

    Raises:
        InputError: there is none, or it was made with other settings.
        ModelFormatError: it is damaged.
    """
    if not path.exists():
        raise InputError(f"{path}: no checkpoint to resume", fix="run without --resume")
    try:
        file = SafeTensors(path)
        try:
            state = json.loads(file.metadata["state"])
            arrays = {name: file.read(name) for name in file.names()}
        finally:
            file.close()
    except (DejavuError, ValueError, KeyError) as error:
        raise ModelFormatError(
            f"{path}: damaged checkpoint: {error}", fix=f"delete {path} and train from the start"
        ) from error
    differing = [key for key in settings if state["settings"].get(key) != settings[key]]
    if differing:
        found = ", ".join(f"{key} {state['settings'].get(key)!r}" for key in differing)
        raise InputError(
            f"{path} was made with {found}; this run has "
            + ", ".join(f"{settings[key]!r}" for key in differing),
            fix=f"run the command that was interrupted, or delete {path}",
        )
    return arrays, state
