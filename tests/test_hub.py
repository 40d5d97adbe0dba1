"""Hub models: the real huggingface-hub client against a small hub on loopback.

The client reads its environment when it is imported: each test runs one process with a list of calls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dejavu.models import store
from loopback import Loopback, Page, loopback

if TYPE_CHECKING:
    from collections.abc import Iterator

SHA = "0123456789" * 4

FOLDER = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "model.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "original/model.safetensors": b"other",
    "code.py": b"evil",
}
GGUFS = {"README.md": b"", "q4/m.gguf": b"four", "m-q8.gguf": b"eight"}

PROGRAM = """
import json, sys
from dejavu.errors import DejavuError
from dejavu.models import store
from dejavu.models.loading import fetch
from dejavu.models.sources import resolve
for verb, *arguments in json.loads(sys.argv[1]):
    try:
        if verb in ("resolve", "fetch"):
            path = (fetch if verb == "fetch" else resolve)(arguments[0], **(arguments[1] if arguments[1:] else {}))
            files = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
            result = files if path.is_dir() else path.read_text()
        elif verb == "list":
            result = [[model.spec, model.bytes] for model in store.list_models()]
        else:
            result = [model.spec for model in store.remove(arguments[0])]
    except DejavuError as error:
        result = f"{type(error).__name__}: {error}"
    print(json.dumps(result))
"""


def add_repository(
    site: Loopback, name: str, files: dict[str, bytes], listed: dict[str, bytes] | None = None, sha: str = SHA
) -> None:
    siblings = [{"rfilename": file} for file in listed or files]
    info = {"id": name, "sha": sha, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
    tree = [{"type": "file", "path": file, "size": len(body), "oid": file} for file, body in files.items()]
    api = f"/api/models/{name}"
    for path in (api, f"{api}/revision/main", f"{api}/revision/v1"):
        site.pages[path] = Page(json.dumps(info).encode(), "application/json")
    site.pages[f"{api}/tree/{sha}"] = Page(json.dumps(tree).encode(), "application/json")
    for file, body in files.items():
        headers = {"ETag": f'"{sha[:4]}-{file.replace("/", "-")}"', "X-Repo-Commit": sha}
        site.pages[f"/{name}/resolve/{sha}/{file}"] = Page(body, "application/octet-stream", headers=headers)


@pytest.fixture
def site() -> Iterator[Loopback]:
    with loopback() as server:
        add_repository(server, "org/toy", FOLDER)
        add_repository(server, "org/ggufs", GGUFS)
        add_repository(server, "org/single", {"README.md": b"", "m.gguf": b"single"})
        add_repository(server, "org/pickle", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
        refuse = {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"}
        server.pages["/api/models/org/gated"] = Page(b"{}", "application/json", 403, refuse)
        unknown = {"X-Error-Code": "RepoNotFound"}
        server.pages["/api/models/org/none"] = Page(b"{}", "application/json", 404, unknown)
        server.pages["/api/models/org/toy/revision/v9"] = Page(
            b"{}", "application/json", 404, {"X-Error-Code": "RevisionNotFound"}
        )
        yield server


def environment(tmp_path: Path, endpoint: str, **more: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return env | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "DEJAVU_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(store.__file__).parents[2]),
        **more,
    }


def run(tmp_path: Path, endpoint: str, calls: list[list[Any]], **more: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(calls)],
        env=environment(tmp_path, endpoint, **more),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


WANTED = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
          "model.safetensors.index.json", "tokenizer.json"]  # fmt: skip


def test_pull_list_remove(tmp_path: Path, site: Loopback) -> None:
    calls: list[list[Any]] = [["resolve", "org/toy"], ["resolve", "hf:org/toy", {"revision": "v1"}]]
    calls += [["resolve", "org/single"], ["resolve", "org/ggufs:q4/m.gguf"], ["list"]]
    toy, version, single, four, listed = run(tmp_path, site.url, calls)
    assert toy == version == WANTED
    assert (single, four) == ("single", "four")
    assert not [path for path in site.requests if "pickle" in path or "original" in path or "code.py" in path]
    assert listed == [
        ["hf:org/ggufs:q4/m.gguf", 4],
        ["hf:org/single", 6],
        ["hf:org/toy", 12],
        ["hf:org/toy@v1", 12],
    ]

    # Stored: no request, hub or not. Found by another program and offline: recorded from the hub's cache.
    n = len(site.requests)
    stored = run(tmp_path, site.url, calls[:4], HF_HUB_OFFLINE="1")
    assert stored == [WANTED, WANTED, "single", "four"]
    elsewhere = str(tmp_path / "other cache")
    offline = run(tmp_path, "http://127.0.0.1:9", [["resolve", "org/toy", {"offline": True}], ["list"]],
                  DEJAVU_CACHE=elsewhere)  # fmt: skip
    assert offline == [WANTED, [["hf:org/toy", 12]]]
    assert len(site.requests) == n

    # Both names share a snapshot, which goes as a whole.
    removed, left = run(tmp_path, site.url, [["remove", "org/toy@v1"], ["list"]])
    assert set(removed) == {"hf:org/toy", "hf:org/toy@v1"}
    assert [spec for spec, _ in left] == ["hf:org/ggufs:q4/m.gguf", "hf:org/single"]
    assert not list((tmp_path / "hf").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("spec", "lost"),
    [
        ("org/toy", ["model-00001-of-00002.safetensors"]),
        ("org/toy", ["tokenizer.json"]),
        ("org/toy", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
        ("org/ggufs:m-q8.gguf", ["m-q8.gguf"]),
    ],
)
def test_what_another_program_fetched_in_part_is_not_stored(
    tmp_path: Path, site: Loopback, spec: str, lost: list[str]
) -> None:
    (whole,) = run(tmp_path, site.url, [["resolve", spec]], DEJAVU_CACHE=str(tmp_path / "another"))
    for name in lost:
        next((tmp_path / "hf").rglob(name)).unlink()
    calls: list[list[Any]] = [["resolve", spec, {"offline": True}], ["list"], ["resolve", spec]]
    refused, listed, repaired = run(tmp_path, site.url, calls)
    assert refused.startswith(f"SourceError: hf:{spec} is not stored")
    assert (listed, repaired) == ([], whole)


def test_an_adapter(tmp_path: Path, site: Loopback) -> None:
    files = dict.fromkeys(("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"), b"{}")
    add_repository(site, "org/adapter", files | {"optimizer.pt": b"pickle", "adapter_model.bin": b"pickle"})
    assert run(tmp_path, site.url, [["resolve", "org/adapter"]]) == [sorted(files)]
    next((tmp_path / "hf").rglob("tokenizer.json")).unlink()  # which is the base's, too
    offline = run(
        tmp_path,
        site.url,
        [["resolve", "org/adapter", {"offline": True}]],
        DEJAVU_CACHE=str(tmp_path / "another"),
    )
    assert offline == [["adapter_config.json", "adapter_model.safetensors"]]


PLANS = {
    f"{place}/{file}": b"{}"
    for place in ("plan", "gentler/0.5", "gentler/0.88")
    for file in ("plan.json", "predictors.safetensors")
}
TEMPLATE = {"additional_chat_templates/tool_use.jinja": b"tools"}
STRAY = dict.fromkeys(
    (
        "additional_chat_templates/code.py",
        "plan/code.py",
        "plan/deep/plan.json",
        "gentler/plan.json",
        "other/plan.json",
    ),
    b"{}",
)


def test_plans_come_with_their_model(tmp_path: Path, site: Loopback) -> None:
    add_repository(site, "org/sparse", FOLDER | PLANS | TEMPLATE | STRAY)
    found = sorted([*WANTED, *PLANS, *TEMPLATE])
    assert run(tmp_path, site.url, [["resolve", "org/sparse"]]) == [found]


def test_a_delta_with_its_plans(tmp_path: Path, site: Loopback) -> None:
    record = json.dumps({"schema": 2, "base": "hf:org/toy", "fingerprint": "f"}).encode()
    files = {"delta.json": record, "delta.safetensors": b"trits"} | PLANS
    add_repository(site, "org/delta", files | {"README.md": b"", "model.safetensors": b"other"})
    found, listed = run(tmp_path, site.url, [["fetch", "org/delta"], ["list"]])
    assert found == sorted(files)
    assert [spec for spec, _ in listed] == ["hf:org/delta", "hf:org/toy"]


def test_a_share_of_a_delta_brings_both(tmp_path: Path, site: Loopback) -> None:
    toy = {"schema": 2, "base": "hf:org/toy", "fingerprint": "f"}
    share = json.dumps(toy | {"base": "hf:org/delta", "share": 0.5}).encode()
    add_repository(site, "org/delta", {"delta.json": json.dumps(toy).encode(), "delta.safetensors": b"trits"})
    add_repository(site, "org/share", {"delta.json": share, "README.md": b""} | PLANS)
    found, listed = run(tmp_path, site.url, [["fetch", "org/share"], ["list"]])
    assert found == sorted(["delta.json", *PLANS])
    assert [spec for spec, _ in listed] == ["hf:org/delta", "hf:org/share", "hf:org/toy"]


def test_what_is_not_there(tmp_path: Path, site: Loopback) -> None:
    expected = {
        "org/ggufs": "several GGUF files: m-q8.gguf, q4/m.gguf",
        "org/ggufs:m.gguf": "no such file",
        "org/pickle": "pickled weights are never loaded",
        "org/gated": "accept its terms",
        "org/none": "knows no model 'org/none'",
        "org/toy@v9": "no revision 'v9'",
        "hf:a--b/c": "not a repository name",
    }
    answers = run(tmp_path, site.url, [["resolve", spec] for spec in expected] + [["list"]])
    for answer, says in zip(answers, expected.values(), strict=False):
        assert answer.startswith("SourceError")
        assert says in answer
    assert answers[-1] == []


def test_refresh(tmp_path: Path, site: Loopback) -> None:
    (before,) = run(tmp_path, site.url, [["resolve", "org/single"]])
    add_repository(site, "org/single", {"m.gguf": b"newer"}, sha=SHA[::-1])
    calls: list[list[Any]] = [
        ["resolve", "org/single"],
        ["resolve", "org/single", {"refresh": True}],
        ["list"],
    ]
    stale, after, listed = run(tmp_path, site.url, calls)
    assert (before, stale, after) == ("single", "single", "newer")
    assert listed == [["hf:org/single", 5]]


def test_json_has_no_bars(tmp_path: Path, site: Loopback) -> None:
    command = [sys.executable, "-m", "dejavu.cli", "pull", "org/single"]
    for options, silent in (([], False), (["--json"], True)):
        env = environment(tmp_path / str(silent), site.url)
        done = subprocess.run([*command, *options], env=env, capture_output=True, text=True)
        assert done.returncode == 0
        assert (done.stderr == "") == silent


def test_hostile_listing(tmp_path: Path, site: Loopback) -> None:
    add_repository(site, "org/evil", FOLDER, {**FOLDER, "../../evil.json": b""})
    assert "leads outside" in run(tmp_path, site.url, [["resolve", "org/evil"]])[0]


def test_unreachable(tmp_path: Path, site: Loopback) -> None:
    calls = [["resolve", "org/toy"], ["resolve", "org/toy", {"offline": True}]]
    online, offline = run(tmp_path, "http://127.0.0.1:9", calls)
    assert "cannot be reached" in online
    assert "--offline takes what another program fetched" in online
    assert "not stored" in offline
    assert "--offline" in offline
    assert "HF_HUB_OFFLINE" not in offline
    by_variable = run(
        tmp_path, site.url, [calls[0], ["resolve", "org/toy", {"offline": False}]], HF_HUB_OFFLINE="1"
    )
    assert all("not stored" in answer and "unset HF_HUB_OFFLINE" in answer for answer in by_variable)
    assert not any("--offline" in answer for answer in by_variable)
    (by_variable,) = run(tmp_path, site.url, calls[:1], TRANSFORMERS_OFFLINE="1")
    assert "not stored" in by_variable
    assert "unset TRANSFORMERS_OFFLINE" in by_variable
    (tmp_path / "plain").write_bytes(b"")
    (unwritable,) = run(tmp_path, site.url, calls[:1], HF_HOME=str(tmp_path / "plain" / "hf"))
    assert unwritable.startswith(("CacheError", "SourceError"))
    (unwritable,) = run(tmp_path, site.url, calls[:1], DEJAVU_CACHE=str(tmp_path / "plain"))
    assert unwritable.startswith("CacheError")


def test_the_base_of_a_delta_is_fetched_with_it(tmp_path: Path, site: Loopback) -> None:
    def delta(name: str, base: str) -> str:
        (tmp_path / name).mkdir()
        record = {"schema": 2, "base": base, "fingerprint": "f"}
        (tmp_path / name / "delta.json").write_text(json.dumps(record))
        return str(tmp_path / name)

    first = delta("first", "hf:org/toy@v1")
    second, round_about = delta("second", first), delta("around", str(tmp_path / "around"))
    calls: list[list[Any]] = [["fetch", second, {"offline": True}], ["list"], ["fetch", second], ["list"]]
    refused, before, found, after = run(tmp_path, site.url, calls)
    assert refused.startswith(f"SourceError: the base of {first}: hf:org/toy@v1 is not stored")
    assert (before, found, after) == ([], ["delta.json"], [["hf:org/toy@v1", 12]])
    (own,) = run(tmp_path, site.url, [["fetch", round_about]])
    assert own.startswith(f"ModelFormatError: {round_about} is its own base")
