"""The cache folder: where fetched models lie, how files get there whole or not at all, list and remove.

Layout: ``models/<source>/.../record.json`` beside each model's files (package index) or pointing to them
(hub). The record is what makes a model complete. ``packed/<name>-<key>/`` holds what was packed of the model at a path,
stored or not (see `dejavu.models.packs`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dejavu.errors import CacheError, InputError, SourceError
from dejavu.models.spec import HubSpec, PypiSpec, parse_spec
from dejavu.models.temporaries import temporary

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORD_NAME = "record.json"

_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")

# Errors of a disk: anything else that a caller's block raises (a connection's, say) passes through.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class StoredModel:
    """A fetched model."""

    spec: str
    """Its full name, as `resolve` takes it."""
    path: Path
    """What `resolve` returns for it: a GGUF file or a folder in Hugging Face layout."""
    bytes: int
    """Size of its files."""
    when: datetime
    """When it was fetched, in UTC."""


def cache_root() -> Path:
    """The cache folder: ``$DEJAVU_CACHE``, else ``$XDG_CACHE_HOME/dejavu``, else ``~/.cache/dejavu``."""
    if chosen := os.environ.get("DEJAVU_CACHE"):
        try:
            return expand_path(chosen, "DEJAVU_CACHE").absolute()
        except OSError as error:  # a relative path, and the working folder is gone
            raise CacheError(f"DEJAVU_CACHE={chosen}: {error.strerror}", fix="give the whole path") from error
    # The XDG specification: a relative path is to be ignored.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else expand_path("~/.cache", "the cache folder")) / "dejavu"


def expand_path(path: Path | str, name: str = "the path") -> Path:
    """`path` with the home folder in the place of ``~`` or ``~USER``.

    Args:
        path: what the user gave.
        name: of what it is, for the message.

    Raises:
        InputError: no such home folder is known, or there is a NUL in the path.
    """
    if "\0" in str(path):
        raise InputError(f"{name} {str(path)!r:.200} holds a NUL", fix="give the path of a file or folder")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        home = Path(path).parts[0]
        raise InputError(
            f"{name} {str(path)!r:.200}: no home folder {home} is known", fix="write the whole path"
        ) from error


def models_root() -> Path:
    """Where fetched models lie."""
    return cache_root() / "models"


def packed_root() -> Path:
    """Where the packed forms of models lie, those of each in a folder of its own."""
    return cache_root() / "packed"


def packed_folder(path: Path) -> Path:
    """Where the packed forms of the model at `path` lie; `remove` deletes them with the model."""
    key = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:12]
    return packed_root() / f"{path.stem}-{key}"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file whole or not at all: yields a stream to a temporary file beside it, renamed at the end.

    Parent folders are made, and what killed writers left there is removed. Whatever ends the block early (Ctrl-C too)
    leaves the old file, or none.

    Raises:
        CacheError: the folder cannot be written, the disk is full, ...
    """
    with contextlib.ExitStack() as stack:
        with disk_errors(path, everything=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = stack.enter_context(temporary(path, lambda made: made.touch(exist_ok=False)))
            stream = part.open("r+b")
        with disk_errors(path), stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        with disk_errors(path, everything=True):
            part.replace(path)
            sync_folder(path.parent)


@contextlib.contextmanager
def disk_errors(path: Path, *, everything: bool = False) -> Iterator[None]:
    """Turn the disk's errors into `CacheError`.

    Args:
        path: what is being written, for the message.
        everything: any `OSError`, not only those that are always the disk's.
    """
    try:
        yield
    except OSError as error:
        if not everything and not is_disk_error(error):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "free some space (dejavu list, dejavu rm), or set DEJAVU_CACHE to a folder on a larger disk"
        else:
            fix = "set DEJAVU_CACHE to a folder that you may write"
        raise CacheError(f"cannot write {path}: {error.strerror or error}", fix=fix) from error


def is_disk_error(error: BaseException) -> bool:
    """Whether an error is the disk's: full, read-only, forbidden; not a connection's or a damaged file's."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def sync_folder(folder: Path) -> None:
    """Make a rename durable, where the file system can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def drop_empty_parents(path: Path) -> None:
    """Remove the empty folders above `path`, up to the root of the models."""
    for parent in path.parents:
        if parent == models_root() or models_root() not in parent.parents:
            return
        try:
            parent.rmdir()
        except OSError:
            return


def folder_of(spec: HubSpec | PypiSpec) -> Path:
    """Where the record of a model lies, and the files of a packaged one (whose version must be given)."""
    if isinstance(spec, HubSpec):
        return models_root() / "hub" / re.sub("[/:]", "--", str(spec).removeprefix("hf:"))
    version = spec.version if spec.file is None else f"{spec.version}--{spec.file.replace('/', '--')}"
    return models_root() / "pypi" / spec.name / str(version)


def offline_variable() -> str | None:
    """The environment variable that forbids the network, if one does. Of two the first counts, as in huggingface-hub."""
    name = next((name for name in _OFFLINE_VARIABLES if os.environ.get(name)), None)
    return name if name and os.environ[name].upper() in ("1", "ON", "YES", "TRUE") else None


def not_stored(spec: HubSpec | PypiSpec) -> SourceError:
    """`fetching_forbidden`, for a model that is not stored."""
    return fetching_forbidden(f"{spec} is not stored", spec)


def fetching_forbidden(message: str, spec: HubSpec | PypiSpec) -> SourceError:
    """The error for a model that would have to be fetched while the environment, or else the caller, forbids it.

    Args:
        message: why it would have to be.
        spec: the model.
    """
    variable = offline_variable()
    how = f"unset {variable}" if variable else "leave --offline (in Python: offline=True) out"
    return SourceError(f"{message}, and fetching is off", fix=f"{how} and go online: dejavu pull {spec}")


def find_stored(spec: HubSpec | PypiSpec) -> StoredModel | None:
    """The stored model of that name, of a package without version the newest one; None if there is none."""
    if isinstance(spec, HubSpec) or spec.version is not None:
        return read_record(folder_of(spec))
    from packaging.version import Version

    versions = []
    for model in list_models():
        stored = parse_spec(model.spec)
        if isinstance(stored, PypiSpec) and (stored.name, stored.file) == (spec.name, spec.file):
            versions.append((Version(str(stored.version)), model))
    return max(versions, key=lambda item: item[0], default=(None, None))[1]


def write_record(folder: Path, spec: HubSpec | PypiSpec, target: str, files: list[str]) -> None:
    """Declare the model of `folder` complete.

    Args:
        folder: `folder_of` the model, or the folder that will be renamed to it.
        spec: its full name.
        target: what `resolve` returns, absolute or relative to `folder`.
        files: its files, absolute or relative to `folder`.
    """
    record = {
        "spec": str(spec),
        "target": target,
        "files": files,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    with atomic_write(folder / RECORD_NAME) as stream:
        stream.write(json.dumps(record, indent=1).encode())


def read_record(folder: Path) -> StoredModel | None:
    """The model that the record in `folder` tells of; None if there is none, it is damaged, or its files are gone.

    Raises:
        CacheError: it cannot be read.
    """
    try:
        record = json.loads((folder / RECORD_NAME).read_bytes())
        spec = _stored_spec(record["spec"])
        path = folder / _checked_target(spec, record["target"])
        size = sum((folder / name).stat().st_size for name in record["files"])
        when = datetime.fromisoformat(record["when"])
        return StoredModel(str(spec), path, size, when) if path.exists() else None
    except (
        FileNotFoundError,
        NotADirectoryError,
        SourceError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ):
        return None
    except OSError as error:
        raise unreadable(error) from error


def _stored_spec(spec: object) -> HubSpec | PypiSpec:
    """The name in a record. Raises `ValueError` or `SourceError` for one that no stored model has."""
    parsed = parse_spec(spec) if isinstance(spec, str) else None
    if isinstance(parsed, HubSpec) or (isinstance(parsed, PypiSpec) and parsed.version is not None):
        return parsed
    raise ValueError(f"{spec!r} is not stored under that name")


def _checked_target(spec: HubSpec | PypiSpec, target: str) -> str:
    """The target in a record: in its folder, or a hub model's snapshot. Raises `ValueError` if it leads elsewhere."""
    path = Path(target)
    if ".." in path.parts or path.is_absolute() != isinstance(spec, HubSpec):
        raise ValueError(f"{target!r} leads outside")
    return target


def unreadable(error: OSError) -> CacheError:
    """The error of a cache that cannot be read."""
    return CacheError(
        f"cannot read {error.filename or models_root()}: {error.strerror or error}",
        fix="check its permissions, or set DEJAVU_CACHE to a folder that you may read",
    )


def list_models() -> list[StoredModel]:
    """All fetched models, by name."""
    return [model for model, _ in _records()]


def _records() -> list[tuple[StoredModel, Path]]:
    """Models and the folders of their records, by name."""
    found = []
    for folder in _folders_below(models_root()):
        if (model := read_record(folder)) is not None:
            found.append((model, folder))
    return sorted(found, key=lambda item: item[0].spec)


def _folders_below(root: Path) -> Iterator[Path]:
    """`root` and all folders in it, but for staged ones. Raises `CacheError` for one that cannot be read."""

    def failed(error: OSError) -> None:
        if not isinstance(
            error, FileNotFoundError
        ):  # which another process has just removed, or `root` itself
            raise unreadable(error) from error

    for folder, inner, _ in os.walk(root, onerror=failed):
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield Path(folder)


def remove(spec: str) -> list[StoredModel]:
    """Delete fetched models; returns them.

    A name without version, revision or file removes all that are stored under it. Of a hub model the whole
    revision goes, with every file of it that was pulled.

    Raises:
        SourceError: no such model is stored.
        CacheError: its files cannot be deleted.
    """
    records = _records()
    try:
        wanted: object = parse_spec(spec)
    except SourceError:  # no name of a model is not stored either
        wanted = None
    chosen = [(model, folder) for model, folder in records if _matches(wanted, parse_spec(model.spec))]
    if not chosen:
        stored = ", ".join(model.spec for model, _ in records) or "none"
        raise SourceError(f"{spec!r} is not stored (stored: {stored})", fix="see: dejavu list")
    snapshots = {snapshot for model, _ in chosen if (snapshot := _snapshot(model))}
    chosen += [item for item in records if item not in chosen and _snapshot(item[0]) in snapshots]
    packs = [packed_folder(model.path) for model, _ in chosen]  # by what the links of snapshots lead to
    for snapshot in snapshots:
        _remove_snapshot(snapshot)
    for pack in packs:
        shutil.rmtree(pack, ignore_errors=True)  # made from its model; made again when needed
    for _, folder in chosen:
        delete_folder(folder)
        drop_empty_parents(folder)
    return [model for model, _ in chosen]


def _matches(wanted: object, stored: object) -> bool:
    """Whether `stored` is `wanted` or a version, revision or file of it."""
    if isinstance(wanted, PypiSpec) and isinstance(stored, PypiSpec):
        pairs = [(wanted.version, stored.version), (wanted.file, stored.file)]
        return wanted.name == stored.name and all(a in (None, b) for a, b in pairs)
    if isinstance(wanted, HubSpec) and isinstance(stored, HubSpec):
        pairs = [(wanted.revision, stored.revision), (wanted.file, stored.file)]
        return wanted.repo == stored.repo and all(a in (None, b) for a, b in pairs)
    return False


def _snapshot(model: StoredModel) -> Path | None:
    """The hub cache's snapshot folder that holds a hub model."""
    if not model.spec.startswith("hf:"):
        return None
    folders = (model.path, *model.path.parents)
    return next((folder for folder in folders if folder.parent.name == "snapshots"), None)


def _remove_snapshot(snapshot: Path) -> None:
    """Delete a snapshot from the hub's cache, with the files that no other snapshot uses."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(snapshot.parents[2])
        for repo in cache.repos:
            commits = [r.commit_hash for r in repo.revisions if r.snapshot_path == snapshot]
            if commits:  # a fork can have the same commit: look at this repository only
                dataclasses.replace(cache, repos=frozenset([repo])).delete_revisions(*commits).execute()
    except CacheNotFound:
        return
    except OSError as error:
        raise CacheError(f"cannot delete {snapshot}: {error}", fix="check its permissions") from error


def delete_folder(folder: Path) -> None:
    """Delete a folder of the cache. Raises `CacheError` where that is not possible."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise CacheError(f"cannot delete {folder}: {error.strerror}", fix="check its permissions") from error
