"""Our side of `child.py`: starts the process of a peer and talks to it."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from dejavu.errors import PeerError, PeerMissingError

_CHILD = Path(__file__).with_name("child.py")
TIMEOUT = 900.0
"""Seconds that a command may take."""


class PeerProcess:
    """A peer in a process of its own. Use as a context manager.

    Args:
        python: the Python that has what `backend` imports.
        backend: a file as `child.py` describes it.
        timeout: seconds that a command may take.

    Raises:
        PeerMissingError: a package is not installed there.
        PeerError: there is no such Python, or the process ended.
    """

    def __init__(self, python: str, backend: Path, *, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        try:
            self._process = subprocess.Popen(  # noqa: S603  the user names the Python
                [python, str(_CHILD), str(backend)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._errors.close()
            raise PeerError(
                f"cannot run {python}: {error.strerror}", fix="give another --peer-python"
            ) from error
        try:
            greeting = self._read()
            if "missing" in greeting:
                raise PeerMissingError(f"{greeting['missing']} is not installed for {python}")
            if "ready" not in greeting:
                raise PeerError(f"the peer did not greet, but said {greeting}")
        except BaseException:
            self.close()
            raise
        self.version = str(greeting["ready"])

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def call(self, do: str, **arguments: Any) -> Any:
        """Run a method of the backend and return its value.

        Raises:
            PeerError: it failed, the process ended, or it took too long.
        """
        line = json.dumps({"do": do, **arguments}) + "\n"
        try:
            assert self._process.stdin is not None  # noqa: S101  for the type
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # the other end, or our own, is closed
            raise PeerError(self._last_words()) from error
        answer = self._read()
        if "value" not in answer:
            raise PeerError(str(answer.get("error", f"the peer answered {answer}")))
        return answer["value"]

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # it ended before it read all
                    continue
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  for the type
        timer = threading.Timer(self._timeout, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if late:
            self._process.wait()
            raise PeerError(f"the peer did not answer within {self._timeout:g} s")
        if not line:
            raise PeerError(self._last_words())
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self._process.kill()  # what else it says cannot be trusted
            self._process.wait()
            raise PeerError(f"the peer answered {line[:80]!r}, which is not a JSON object")
        return answer

    def _last_words(self) -> str:
        """How the process ended, and the last line that it wrote."""
        if self._errors.closed:
            return "the peer was closed"
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "the peer closed its output"
        how = f"with status {code}"
        if code < 0:
            how = f"by {signal.Signals(-code).name}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"the process ended {how}" + (f": {lines[-1][:200]}" if lines else "")
