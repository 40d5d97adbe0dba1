"""Running parts: what is finished for this code and machine is left alone; what was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu.environment import describe_machine, usable_cpus
from dejavu.models.store import atomic_write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from results_suite.parts import Part

ROOT = Path(__file__).resolve().parents[2]
DEJAVU = (sys.executable, "-c", "import sys; from dejavu.cli import main; sys.exit(main())")


@dataclass(frozen=True)
class Results:
    """The folder of results. A part's note says which key its result was made under."""

    folder: Path
    adapted: Path | None = None
    """The adapted model; None: if there is one, it lies in the folder."""

    @cached_property
    def code(self) -> str:
        """The commit, and a hash of what of the package differs from it."""
        difference = _git("diff", "HEAD", "--", "src", "csrc", "CMakeLists.txt")
        changed = f"+{hashlib.sha256(difference.encode()).hexdigest()[:8]}" if difference else ""
        return _git("log", "-1", "--format=%h", "--", "src", "csrc", "CMakeLists.txt") + changed

    def key(self, part: Part, known: Sequence[Part]) -> str:
        """Of the commands, the code, the machine, and all that for the parts before it."""
        earlier = [self.key(other, known) for other in known if other.name in part.after]
        facts = [part.commands, self.code, describe_machine().cpu, len(usable_cpus()), earlier]
        adapted = self.adapted or self.folder / "adapted-model"
        plan = adapted / "plan/plan.json"  # says which weights it is for
        if plan.exists() and any("adapted-model" in command for command in part.commands):
            facts.append(plan.read_text())
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

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


def _call(command: list[str], folder: Path, out: Any) -> int:
    # `python benchmarks/x.py` puts its own folder on the path; everything else is inherited.
    return subprocess.run(command, cwd=folder, stdout=out, env=os.environ).returncode


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
