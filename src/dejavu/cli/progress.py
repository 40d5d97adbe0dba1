"""Drawing the steps of a fetch or of a computation on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dejavu.cli.output import say
from dejavu.training.progress import Silent

if TYPE_CHECKING:
    import rich.progress

    from dejavu.models.progress import Progress
    from dejavu.training.progress import Progress as StageProgress

_LINE_SECONDS = 15.0
"""Between lines where there is no terminal."""


class ByteBars:
    """A `Progress` that draws a bar per step on a terminal; elsewhere a line per step."""

    def __init__(self) -> None:
        self._bars: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def start(self, description: str, total_bytes: int | None) -> None:
        """Begin a bar."""
        if not sys.stderr.isatty():
            say(description)
            return
        import rich.progress as bars
        from rich.console import Console

        self.finish()
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.DownloadColumn(binary_units=True),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars.start()
        self._task = self._bars.add_task(description, total=total_bytes)

    def advance(self, n: int) -> None:
        """Move the bar by `n` bytes."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, n)

    def finish(self) -> None:
        """Wipe the bar."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None


def make_progress(*, quiet: bool) -> Progress | None:
    """What draws the steps of a fetch; None if `quiet`, so that huggingface-hub draws none of its own bars either."""
    return None if quiet else ByteBars()


@contextlib.contextmanager
def token_bar(total: int, *, quiet: bool, doing: str = "scoring") -> Iterator[Callable[[int], None]]:
    """A bar over `total` tokens with the time left, on a terminal; yields what moves it."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    import rich.progress as bars
    from rich.console import Console

    with bars.Progress(
        bars.TextColumn(doing),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("tokens, left:"),
        bars.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda count: bar.advance(task, count)


class StageBars:
    """A `dejavu.training.progress.Progress`: a bar per stage on a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._bars: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None
        self._stage, self._total, self._done, self._began, self._told = "", 1, 0, 0.0, 0.0

    def start(self, stage: str, total: int) -> None:
        """Begin a stage of `total` tokens, or whatever the stage says that it counts."""
        self.finish()
        self._stage, self._total, self._done = stage, max(total, 1), 0
        self._began = self._told = time.perf_counter()
        if not sys.stderr.isatty():
            say(f"{stage}: 0/{total}")
            return
        import rich.progress as bars
        from rich.console import Console

        self._bars = bars.Progress(
            bars.TextColumn(stage),
            bars.BarColumn(),
            bars.TaskProgressColumn(),
            bars.TextColumn("left:"),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[state]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars.start()
        self._task = self._bars.add_task(stage, total=total, state="")

    def advance(self, tokens: int, state: str = "") -> None:
        """Move the bar, and say how it goes."""
        self._done += tokens
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, advance=tokens, state=state)
            return
        now = time.perf_counter()
        if now - self._told >= _LINE_SECONDS and self._done:
            self._told = now
            left = (now - self._began) * (self._total - self._done) / self._done
            say(f"{self._stage}: {self._done}/{self._total}, {left:.0f} s left; {state}")

    def finish(self) -> None:
        """Wipe the bar."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None


@contextlib.contextmanager
def stage_bars(*, quiet: bool) -> Iterator[StageProgress]:
    """Draws the stages of a long run on stderr."""
    if quiet:
        yield Silent()
        return
    bars = StageBars()
    try:
        yield bars
    finally:
        bars.finish()


@contextlib.contextmanager
def status_line(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on the terminal that says what is going on; yields what changes it."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update
