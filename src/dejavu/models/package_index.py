"""The wheels that a package index offers: PEP 503 (HTML) and PEP 691 (JSON) simple API, and local folders."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from packaging.version import InvalidVersion, Version

from dejavu.errors import InputError, SourceError
from dejavu.models.store import expand_path

if TYPE_CHECKING:
    from dejavu.models.pip_config import PipConfig

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_MAX_PAGE = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WHEEL = re.compile(
    r"(?P<name>[\w.]+)-(?P<version>[\w.!+]+)(-\d[\w.]*)?-[\w.]+-[\w.]+-(?P<platform>[\w.]+)\.whl", re.ASCII
)


@dataclass(frozen=True)
class Wheel:
    """A wheel that an index offers."""

    url: str
    """http(s) URL or local path."""
    version: Version
    sha256: str | None
    yanked: bool
    universal: bool
    """Not built for one platform."""


class _Link(NamedTuple):
    href: str
    file_name: str
    sha256: str | None
    yanked: bool


class Opened(NamedTuple):
    """An open URL or file."""

    stream: BinaryIO
    url: str
    """Where redirections led."""
    content_type: str
    length: int | None
    """Bytes to come; None if unknown."""


class PackageIndex:
    """The indexes and folders of a pip configuration, spoken to over plain HTTP(S); proxies are honoured."""

    def __init__(self, config: PipConfig) -> None:
        self._config = config
        self._credentials: dict[str, str] = {}
        self._opener: urllib.request.OpenerDirector | None = None

    def wheels(self, name: str, version: Version | None = None) -> list[Wheel]:
        """Wheels of a package, best first: the newest release, then by the order of the indexes.

        Args:
            name: normalised name.
            version: only this one; a yanked or pre-release version may be chosen only so.

        Raises:
            SourceError: no index can be reached, the package or version is unknown, or it has no wheel.
        """
        found: list[Wheel] = []
        failures: list[SourceError] = []
        for place in (*self._config.find_links, *self._config.indexes):
            try:
                offered = self._offered(place, name)
            except SourceError as error:
                failures.append(error)
                continue
            found += offered
            if any(wheel.version == version for wheel in offered):
                break
        if version is not None:
            chosen = [wheel for wheel in found if wheel.version == version]
        else:
            chosen = [wheel for wheel in found if not wheel.yanked]
            chosen = [wheel for wheel in chosen if not wheel.version.is_prerelease] or chosen
        if not chosen:
            raise self._nothing(name, version, found, failures)
        newest = max(wheel.version for wheel in chosen)
        return sorted((w for w in chosen if w.version == newest), key=lambda wheel: not wheel.universal)

    def _nothing(
        self, name: str, version: Version | None, found: list[Wheel], failures: list[SourceError]
    ) -> SourceError:
        """Why no wheel was found."""
        if failures:
            reasons = "; ".join(str(error.args[0]) for error in failures)
            return SourceError(
                f"package {name!r} was not found, and not every index could be asked: {reasons}",
                fix="check the network, PIP_INDEX_URL, PIP_CERT and the proxy variables",
            )
        places = (
            ", ".join(_without_password(p) for p in (*self._config.indexes, *self._config.find_links))
            or "none"
        )
        if found:
            versions = ", ".join(map(str, sorted({wheel.version for wheel in found})))
            wanted = version or "that is not yanked"
            return SourceError(
                f"package {name!r} has no version {wanted} as a wheel (there is: {versions})",
                fix=f"write pypi:{name}==VERSION with one of them",
            )
        return SourceError(
            f"no wheel of package {name!r} in: {places}", fix="check the name, or set PIP_INDEX_URL"
        )

    def _offered(self, place: str, name: str) -> list[Wheel]:
        """Wheels of `name` in one index or folder; none if it does not know the package."""
        if place in self._config.find_links:
            folder = _local(place)
            if folder is None or not folder.is_dir():
                return []
            links = [_Link(str(path), path.name, None, False) for path in sorted(folder.glob("*.whl"))]
            return _select(links, name)
        base = f"{place}/{name}/"
        folder = _local(base)
        if folder is not None:
            try:
                page = (folder / "index.html").read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                return []
            except OSError as error:
                raise SourceError(f"cannot read {folder}: {error.strerror}") from error
            base = folder.absolute().as_uri() + "/"
            return _select(_absolute(base, _html_links(page)), name)
        try:
            page_stream, base, kind, _ = self.open(base)
        except SourceError as error:
            if isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code in (404, 410):
                return []
            raise
        with page_stream:
            try:
                content = page_stream.read(_MAX_PAGE + 1)
            except (OSError, http.client.HTTPException) as error:
                raise SourceError(f"{_without_password(base)}: the connection broke ({error})") from error
        if len(content) > _MAX_PAGE:
            raise SourceError(f"{_without_password(base)}: a page of more than {_MAX_PAGE} bytes")
        if "json" in kind:
            return _select(_absolute(base, _json_links(content, base)), name)
        return _select(_absolute(base, _html_links(content.decode("utf-8", "replace"))), name)

    def open(self, url: str) -> Opened:
        """Open a URL or local path.

        Raises:
            SourceError: it cannot be reached.
        """
        local = _local(url)
        shown = _without_password(url)
        if local is not None:
            try:
                return Opened(local.open("rb"), url, "", local.stat().st_size)
            except OSError as error:
                raise SourceError(f"cannot read {local}: {error.strerror}") from error
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "http" and host not in (
            *self._config.trusted_hosts,
            "localhost",
            "127.0.0.1",
            "::1",
        ):
            raise SourceError(
                f"{shown}: not a secure address", fix=f"use https, or set PIP_TRUSTED_HOST={host}"
            )
        place = parts.netloc.rpartition("@")[2]
        if parts.username:
            login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self._credentials[place] = "Basic " + base64.b64encode(login.encode()).decode()
        try:
            request = urllib.request.Request(  # noqa: S310 - the scheme is http or https, see _local
                urllib.parse.urlunsplit(parts._replace(netloc=place)),
                headers={"Accept": _ACCEPT, "User-Agent": "dejavu-llm"},
            )
            if place in self._credentials:
                # Unredirected: another host must not see it.
                request.add_unredirected_header("Authorization", self._credentials[place])
            response = cast(
                "http.client.HTTPResponse", self._connect().open(request, timeout=self._config.timeout)
            )
            kind = response.headers.get("Content-Type", "")
            return Opened(cast("BinaryIO", response), response.geturl(), kind, response.length)
        except urllib.error.HTTPError as error:
            error.close()
            raise SourceError(f"{shown}: HTTP {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise SourceError(f"{shown} cannot be reached ({reason})") from error

    def _connect(self) -> urllib.request.OpenerDirector:
        if self._opener is None:
            cert = self._config.cert
            try:
                if cert:
                    context = ssl.create_default_context(
                        cafile=None if Path(cert).is_dir() else cert,
                        capath=cert if Path(cert).is_dir() else None,
                    )
                else:
                    context = ssl.create_default_context()
            except (OSError, ValueError) as error:
                raise SourceError(
                    f"CA bundle {cert}: {error}", fix="correct PIP_CERT (or cert in pip.conf)"
                ) from error
            self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
        return self._opener


def _local(url: str) -> Path | None:
    """The path that a file URL or plain path names; None for http and https."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise SourceError(
            f"{_without_password(url)[:100]}: {error}", fix="correct the index's URL"
        ) from error
    if parts.scheme in ("http", "https"):
        return None
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    if parts.scheme and not url.startswith(os.sep):
        raise SourceError(f"{url[:100]}: scheme {parts.scheme!r}; http, https and file are supported")
    try:
        return expand_path(url, "the index")
    except InputError as error:
        raise SourceError(str(error.args[0]), fix="correct the index's path") from error


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _select(links: list[_Link], name: str) -> list[Wheel]:
    """The wheels of package `name` among the links."""
    result = []
    for link in links:
        match = _WHEEL.fullmatch(link.file_name)
        if not match or re.sub(r"[-_.]+", "-", match["name"]).lower() != name:
            continue
        version = _version(match["version"])
        if version is not None:
            result.append(Wheel(link.href, version, link.sha256, link.yanked, match["platform"] == "any"))
    return result


def _absolute(base: str, links: list[_Link]) -> list[_Link]:
    """Resolve the links against their page; a page from the network may not point to local files."""
    result = []
    for link in links:
        try:
            url = urllib.parse.urljoin(base, link.href)
            scheme = urllib.parse.urlsplit(url).scheme
        except ValueError:
            continue
        if scheme in ("http", "https") or (scheme == "file" and base.startswith("file:")):
            result.append(link._replace(href=url))
    return result


def _json_links(content: bytes, base: str) -> list[_Link]:
    """Files of a PEP 691 page."""
    try:
        links = []
        for file in json.loads(content)["files"]:
            sha256 = str(file.get("hashes", {}).get("sha256", "")).lower()
            links.append(
                _Link(
                    str(file["url"]),
                    str(file["filename"]),
                    sha256 if _SHA256.fullmatch(sha256) else None,
                    bool(file.get("yanked", False)),
                )
            )
        return links
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{_without_password(base)}: not a package index's answer ({error!r})") from error


def _html_links(page: str) -> list[_Link]:
    """Anchors of a PEP 503 page."""
    parser = _Anchors()
    parser.feed(page)
    return parser.links


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[_Link] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        href = values.get("href")
        if tag != "a" or not href:
            return
        url, _, fragment = href.partition("#")
        algorithm, _, digest = fragment.partition("=")
        sha256 = digest.lower() if algorithm == "sha256" and _SHA256.fullmatch(digest.lower()) else None
        file_name = urllib.parse.unquote(url.partition("?")[0].rpartition("/")[2])
        self.links.append(_Link(url, file_name, sha256, "data-yanked" in values))
