"""`Reporter`: how a run of `dejavu.adapt.distill` is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dejavu.adapt.distill import State
    from dejavu.adapt.options import AdaptOptions
    from dejavu.training.progress import Progress


class Reporter:
    """Turns states into movements of a bar: of tokens, or of seconds where the time is given; of all stages to come."""

    def __init__(self, options: AdaptOptions, progress: Progress, name: str) -> None:
        timed = options.tokens is None
        self._name = f"{name} (seconds)" if timed else name
        self._total = round(3600 * (options.hours or 0)) if timed else options.tokens or 0
        self._progress = progress
        self._stage: str | None = None
        self._shown = 0

    def __call__(self, state: State) -> None:
        """Move the bar to where the run stands."""
        now = min(round(state.done * self._total), self._total)
        if state.stage != self._stage:  # the first, or something else was shown between them
            self._stage, self._shown = state.stage, now
            self._progress.start(self._name, self._total - now)
        self._progress.advance(now - self._shown, str(state))
        self._shown = now
