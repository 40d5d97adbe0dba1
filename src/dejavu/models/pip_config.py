"""Where pip would look for packages: its environment variables and configuration files."""

from __future__ import annotations

import configparser
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from dejavu.errors import SourceError

PYPI = "https://pypi.org/simple"

_SECTIONS = ("global", "install", "download")  # the later ones win
_TIMEOUTS = ("timeout", "default-timeout")  # pip knows both spellings
_KEYS = ("index-url", "extra-index-url", "find-links", "no-index", "cert", "trusted-host", *_TIMEOUTS)


@dataclass(frozen=True)
class PipConfig:
    """What of pip's configuration concerns fetching."""

    indexes: tuple[str, ...] = (PYPI,)
    """Simple-API roots: http, https or file URLs, or local folders; in order of preference."""
    find_links: tuple[str, ...] = ()
    """Local folders of wheels (as paths or file URLs)."""
    cert: str | None = None
    """CA bundle; None: the system's."""
    trusted_hosts: tuple[str, ...] = ()
    """Hosts that may be spoken to without TLS."""
    timeout: float = 15.0
    """Seconds without an answer."""


def pip_config() -> PipConfig:
    """Read pip's configuration as pip does: files from the system's to the user's, then PIP_* variables.

    Raises:
        SourceError: a configuration file or value cannot be read.
    """
    values: dict[str, str] = {}
    for path in _files():
        values |= _read(path)
    for key in _KEYS:
        text = os.environ.get("PIP_" + key.upper().replace("-", "_"))
        if text:
            values[key] = text

    indexes: tuple[str, ...] = ()
    if values.get("no-index", "").lower() not in ("1", "true", "yes", "on", "y", "t"):
        indexes = (values.get("index-url", PYPI).strip(), *values.get("extra-index-url", "").split())
    return PipConfig(
        indexes=tuple(dict.fromkeys(index.rstrip("/") for index in indexes)),
        find_links=tuple(dict.fromkeys(values.get("find-links", "").split())),
        cert=values.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE"),
        trusted_hosts=tuple(values.get("trusted-host", "").split()),
        timeout=_timeout(next((values[key] for key in _TIMEOUTS if key in values), "15")),
    )


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise SourceError(
            f"pip's timeout is {text!r}; a number of seconds is needed", fix="set PIP_TIMEOUT=15"
        )
    return seconds


def _files() -> list[Path]:
    """Configuration files, the later ones win. ``PIP_CONFIG_FILE=/dev/null`` means none."""
    chosen = os.environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    try:
        home = Path.home()
    except RuntimeError:  # a user without one
        home = Path(os.devnull)
    shared = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    own = os.environ.get("XDG_CONFIG_HOME") or str(home / ".config")
    files = [Path(folder) / "pip" / "pip.conf" for folder in shared.split(os.pathsep)]
    files += [Path("/etc/pip.conf"), home / ".pip" / "pip.conf", Path(own) / "pip" / "pip.conf"]
    files.append(Path(sys.prefix) / "pip.conf")
    return [*files, Path(chosen)] if chosen else files


def _read(path: Path) -> dict[str, str]:
    """The keys of one file; a missing or unreadable file has none, as for pip."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"), str(path))
    except OSError:
        return {}
    except (configparser.Error, UnicodeDecodeError) as error:
        raise SourceError(
            f"pip's configuration {path}: {error}", fix="correct it, or set PIP_CONFIG_FILE=/dev/null"
        ) from error
    sections = [section for section in _SECTIONS if parser.has_section(section)]
    return {key: parser[section][key] for section in sections for key in _KEYS if key in parser[section]}
