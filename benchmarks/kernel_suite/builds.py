"""The two builds that are compared: the working tree with its uncommitted changes, and a git ref."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dejavu.environment import usable_cpus
from dejavu.models.store import cache_root

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Build:
    """A package folder whose core is built."""

    name: str
    """Working tree, or the ref as it was typed."""
    commit: str
    changed: bool
    """Whether anything is not committed."""
    folder: Path
    """Holds the package `dejavu`."""


def working_tree() -> Build:
    """The repository that this file lies in, built incrementally in the cache folder."""
    key = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    folder = _home() / f"tree-{key}"
    core = _compile(ROOT, folder / "cmake")
    _assemble(ROOT, core, folder / "package")
    changed = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return Build("working tree", _git("rev-parse", "HEAD")[:12], changed, folder / "package")


def git_ref(ref: str) -> Build:
    """A commit, built once and kept in the cache folder by its hash."""
    try:
        commit = _git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")[:12]
    except subprocess.CalledProcessError:
        raise SystemExit(f"{ref!r} is no commit of {ROOT.name}") from None
    package = _home() / commit
    if not package.exists():
        package.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=package.parent, prefix=f"{commit}-") as temporary:
            # An archive and not `git worktree add`: nothing is left in .git when this is killed.
            tree = Path(temporary) / "tree"
            with tarfile.open(fileobj=io.BytesIO(_archive(commit))) as archive:
                archive.extractall(tree, filter="data")
            core = _compile(tree, Path(temporary) / "cmake")
            _assemble(tree, core, Path(temporary) / "package")
            (Path(temporary) / "package").rename(package)
    return Build(ref, commit, False, package)


def _home() -> Path:
    """By interpreter: a core fits one."""
    return cache_root() / "cores" / str(sysconfig.get_config_var("SOABI"))


def _compile(source: Path, build: Path) -> Path:
    """Configure and build as the package does, at its build type; the extension module."""
    build.mkdir(parents=True, exist_ok=True)
    nanobind = _run([sys.executable, "-m", "nanobind", "--cmake_dir"], "nanobind (pip install nanobind)")
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "Python_EXECUTABLE": sys.executable,
        "nanobind_DIR": nanobind.strip(),
    }
    print(f"building {source.name or source} ...", file=sys.stderr)
    _run(["cmake", "-S", str(source), "-B", str(build), *(f"-D{k}={v}" for k, v in options.items())], "cmake")
    jobs = str(len(usable_cpus()))
    _run(["cmake", "--build", str(build), "--parallel", jobs, "--target", "_core"], "the compiler")
    (core,) = build.glob("_core*.so")
    return core


def _assemble(source: Path, core: Path, package: Path) -> None:
    """The Python files of `source` and the core in one folder, in place of what was there."""
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(
        source / "src/dejavu", package / "dejavu", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    shutil.copy2(core, package / "dejavu" / core.name)


def _archive(commit: str) -> bytes:
    command = ["git", "-C", str(ROOT), "archive", commit, "CMakeLists.txt", "csrc", "src"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _run(command: list[str], what: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit(f"{what} is needed to build the core") from None
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout
