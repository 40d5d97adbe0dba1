"""Running parts: what is finished for this code and machine is left alone; what was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu.environment import describe_machine, usable_cpus
from dejavu.models.store import atomic_write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from results_suite.parts import Part

ROOT = Path(__file__).resolve().parents[2]
CODE = ("src", "csrc", "CMakeLists.txt", "benchmarks")
"""What decides what is measured."""
DEJAVU = (sys.executable, "-c", "import sys; from dejavu.cli import main; sys.exit(main())")


@dataclass(frozen=True)
class Results:
    """The folder of results. A part's note says which key its result was made under."""

    folder: Path
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """Data and models: how commands call them, and where they lie."""

    @cached_property
    def code(self) -> str:
        """The commit, and a hash of what of the package and the benchmarks differs from it."""
        difference = _git("diff", "HEAD", "--", *CODE)
        changed = f"+{hashlib.sha256(difference.encode()).hexdigest()[:8]}" if difference else ""
        return _git("log", "-1", "--format=%h", "--", *CODE) + changed

    def key(self, part: Part, known: Sequence[Part]) -> str:
        """Of the commands, the inputs that they name, the code, the machine, and all that for the parts before it."""
        earlier = [self.key(other, known) for other in known if other.name in part.after]
        machine = [describe_machine().cpu, len(usable_cpus())]
        facts = [part.commands, self._named(part), self.code, machine, earlier]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def _named(self, part: Part) -> dict[str, list[tuple[str, int, str]]]:
        """The inputs, or what of them, that the commands name, with their content."""
        found = {}
        for name, place in self.inputs.items():
            pattern = rf"(?<![\w./-]){re.escape(name)}((?:/[\w./-]+)?)(?![\w.-])"
            for below in re.findall(pattern, " ".join(part.commands)):
                found[name + below] = content(place / below.lstrip("/"))
        return found

    def note(self, name: str) -> dict[str, Any] | None:
        """What is known of a part that is finished."""
        path = self._path(name, "finished")
        return json.loads(path.read_text()) if path.exists() else None

    def finished(self, part: Part, key: str) -> bool:
        """Whether its result is there, of this key."""
        note = self.note(part.name)
        return note is not None and note["key"] == key and (self.folder / part.result).exists()

    def run(self, part: Part, key: str) -> int:
        """Run the commands of a part; the exit status of the first that fails, or 0. Ctrl-C leaves what is done."""
        started = self._path(part.name, "started")
        goes_on = started.exists() and started.read_text() == key
        if not goes_on:
            self._forget(part)
            started.parent.mkdir(parents=True, exist_ok=True)
            started.write_text(key)
        (self.folder / part.result).parent.mkdir(parents=True, exist_ok=True)
        left = not part.checkpoint or (self.folder / part.checkpoint).exists()
        resumes = bool(goes_on and part.resume and left)
        begun = time.time()
        for command in part.commands:
            status = self._command(part, f"{command} {part.resume}" if resumes else command)
            if status:
                return status
        note = {
            "part": part.name,
            "key": key,
            "commands": part.commands,
            "code": self.code,
            "date": time.strftime("%Y-%m-%d"),
            "cpu": describe_machine().cpu,
            "cores": describe_machine().physical_cores,
            "seconds": round(time.time() - begun),
        }
        with atomic_write(self._path(part.name, "finished")) as stream:
            stream.write(json.dumps(note, indent=1).encode())
        started.unlink()
        return 0

    def _command(self, part: Part, command: str) -> int:
        program, *arguments = shlex.split(command)
        if program == "dejavu":
            full = [*DEJAVU, *arguments]
        else:
            full = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
        if not part.printed:
            return _call(full, self.folder, None)
        result = self.folder / part.result
        partial = result.with_name(result.name + ".part")
        with partial.open("wb") as stream:
            status = _call(full, self.folder, stream)
        if status == 0:
            partial.replace(result)
        return status

    def _forget(self, part: Part) -> None:
        """Results of another key, whole or in part."""
        result = self.folder / part.result
        self._path(part.name, "finished").unlink(missing_ok=True)
        if result.is_dir():
            shutil.rmtree(result)
        paths = [result, result.with_suffix(".items.jsonl")]
        paths += [self.folder / part.checkpoint] if part.checkpoint else []
        for path in paths:
            path.unlink(missing_ok=True)

    def _path(self, name: str, what: str) -> Path:
        return self.folder / "notes" / f"{name.replace('/', '-')}.{what}"


@cache  # inputs are many and large, and stay as they are while parts run
def content(path: Path) -> list[tuple[str, int, str]]:
    """Name, bytes and SHA-256 of a file, or of each below a folder; of nothing there is nothing."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = []
    for file in filter(Path.is_file, files):
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        name = file.relative_to(path) if path.is_dir() else file.name
        found.append((str(name), file.stat().st_size, digest.hexdigest()))
    return found


def _call(command: list[str], folder: Path, out: Any) -> int:
    # `python benchmarks/x.py` puts its own folder on the path; everything else is inherited.
    return subprocess.run(command, cwd=folder, stdout=out, env=os.environ).returncode


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
