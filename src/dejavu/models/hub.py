"""Models of the Hugging Face hub, through huggingface-hub and its own cache."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dejavu.errors import CacheError, DejavuError, SourceError
from dejavu.models.adapter_config import ADAPTER_NAME
from dejavu.models.delta import ARRAYS_NAME as DELTA_ARRAYS
from dejavu.models.delta import DELTA_NAME
from dejavu.models.folder_files import is_inner_file
from dejavu.models.lora import ARRAYS_NAME
from dejavu.models.store import folder_of, is_disk_error, not_stored, write_record

if TYPE_CHECKING:
    from dejavu.models.spec import HubSpec

_SUFFIXES = (".json", ".model", ".txt", ".jinja")
_WEIGHTS = (".safetensors", ".gguf")
_SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")


def fetch_hub(spec: HubSpec, *, offline: bool, bars: bool) -> Path:
    """Fetch a hub model and record it; see `sources.resolve` for the errors.

    Args:
        spec: repository, revision, file.
        offline: only look into the hub's cache, where another program may have put it.
        bars: let huggingface-hub draw its progress bars.

    Returns:
        The snapshot folder, or the GGUF file in it.
    """
    try:
        snapshot, files = _snapshot(spec, offline=offline, bars=bars)
    except DejavuError:
        raise
    except Exception as error:
        # Broad: errors of the client's HTTP library pass through, and the version decides which that is.
        raise _explain(error, spec) from error
    target = snapshot / files[0] if len(files) == 1 else snapshot
    write_record(folder_of(spec), spec, str(target), [str(snapshot / name) for name in files])
    return target


def _snapshot(spec: HubSpec, *, offline: bool, bars: bool) -> tuple[Path, list[str]]:
    """Fetch (offline: find) the files of the model. Returns the snapshot folder and their names in it."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if offline:
        snapshot = _cached_snapshot(spec)
        present = [p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()]
        # Another program may have fetched a part of the model: the tokenizer, another file, some of the shards.
        begun = spec.file in present if spec.file else any(name.endswith(_WEIGHTS) for name in present)
        files = _choose(spec, present) if begun else []
        if not _is_whole(files):
            raise not_stored(spec)
        return snapshot, files
    info = HfApi().model_info(spec.repo, revision=spec.revision)
    files = _choose(spec, [sibling.rfilename for sibling in info.siblings or []])
    quiet = not bars and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        snapshot = Path(snapshot_download(spec.repo, revision=spec.revision, allow_patterns=files))
    finally:
        if quiet:
            enable_progress_bars()
    missing = [name for name in files if not (snapshot / name).exists()]
    if missing:
        raise SourceError(f"{spec}: the hub did not deliver {', '.join(missing)}", fix="run again")
    return snapshot, files


def _cached_snapshot(spec: HubSpec) -> Path:
    """The snapshot in the hub's cache, where `snapshot_download` only finds those that hold every file."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    wanted = spec.revision or "main"
    try:
        repos = [r for r in scan_cache_dir().repos if (r.repo_type, r.repo_id) == ("model", spec.repo)]
    except CacheNotFound:
        repos = []
    for revision in (revision for repo in repos for revision in repo.revisions):
        if wanted in (revision.commit_hash, *revision.refs):
            return Path(revision.snapshot_path)
    raise not_stored(spec)


def _is_whole(files: list[str]) -> bool:
    """Whether `files`, which `_choose` has found in the hub's cache, are all of a model: each shard, and a tokenizer."""
    if {ARRAYS_NAME, DELTA_ARRAYS} & set(files) or any(name.endswith(".gguf") for name in files):
        return True
    shards = [match for name in files if (match := _SHARD.fullmatch(name))]
    # tokenizer.model alone does not run; but fetching may bring no more, and opening the model says what is missing.
    known = {"tokenizer.json", "tokenizer.model"} & set(files) or {"vocab.json", "merges.txt"} <= set(files)
    return bool(known) and all(int(shard[1]) == len(shards) for shard in shards)


def _choose(spec: HubSpec, names: list[str]) -> list[str]:
    """The files that make the model, of those that the repository has."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise SourceError(f"{spec}: the repository lists a file {name!r}, which leads outside")
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name == "model.safetensors"] or [
        name for name in top if name.startswith("model-") and name.endswith(".safetensors")
    ]
    if spec.file:
        if spec.file not in names:
            has = ", ".join(ggufs) or "none"
            raise SourceError(f"{spec}: no such file (GGUF files there: {has})", fix="choose one of them")
        return [spec.file]
    if "config.json" not in top:
        weights = []
    if ADAPTER_NAME in top and ARRAYS_NAME in top:
        weights = [ARRAYS_NAME]
    if DELTA_NAME in top:  # a share of another delta has no arrays of its own
        weights = [DELTA_ARRAYS if DELTA_ARRAYS in top else DELTA_NAME]
    if weights:
        beside = [name for name in names if is_inner_file(name) or (name in top and name.endswith(_SUFFIXES))]
        return sorted({*weights, *beside})
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise SourceError(
            f"{spec} holds several GGUF files: {', '.join(ggufs)}", fix=f"choose one: {spec}:{ggufs[0]}"
        )
    raise SourceError(
        f"{spec} holds no GGUF file, no config.json with model.safetensors (or its shards), no LoRA adapter and no delta",
        fix="choose a repository with safetensors or GGUF weights; pickled weights are never loaded",
    )


def _explain(error: Exception, spec: HubSpec) -> DejavuError:
    """A typed error for whatever the hub's client raised."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return SourceError(
            f"{spec}: access is restricted", fix="accept its terms on the hub, then: hf auth login"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return SourceError(
            f"the hub knows no model {spec.repo!r}, or it is private", fix="check the name; hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceError(f"{spec}: no revision {spec.revision!r}", fix="check the branch, tag or commit")
    if isinstance(error, errors.HFValidationError):
        return SourceError(f"{spec}: not a repository name ({error})", fix="write hf:ORG/NAME")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return not_stored(spec)
    if is_disk_error(error):
        return CacheError(
            f"the hub's cache cannot be written ({_first_line(error)})", fix="free space, or set HF_HOME"
        )
    return SourceError(
        f"{spec}: the hub cannot be reached ({_first_line(error)})",
        fix="check the network, HF_ENDPOINT and the proxy variables; --offline takes what another program fetched",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
