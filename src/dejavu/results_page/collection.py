"""The results of one model, brought together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dejavu.errors import InputError
from dejavu.results_page.reading import Kind, Source, place, read_result

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Collection:
    """Results that belong together."""

    sources: tuple[Source, ...]

    def of(self, *kinds: Kind) -> list[Source]:
        """Those of some kinds, in the order given."""
        return [source for source in self.sources if source.kind in kinds]

    @property
    def model(self) -> str:
        """What to call the model: as most files do."""
        names = [s.model for s in self.sources if s.model and not self.adapted(s)]
        names = names or [s.model for s in self.sources if s.model]
        return max(names, key=names.count) if names else "MODEL"

    @property
    def fingerprint(self) -> str | None:
        """Of its weights; None: no file says it."""
        found = [s.fingerprint for s in self.sources if s.fingerprint]
        return next((f for f in found if f not in self._adapted), next(iter(found), None))

    def adapted(self, source: Source) -> bool:
        """Whether a result is that of the adapted model, and there is one of the original too."""
        return source.fingerprint in self._adapted and source.fingerprint != self.fingerprint

    @property
    def synthetic(self) -> bool:
        """Whether it is the shape of a model, with random numbers for weights."""
        return any(source.synthetic for source in self.sources)

    @property
    def shows_adapted(self) -> bool:
        """Whether there is something of an adapted model: its curve, its plans, or its place on a frontier."""
        rows = (row for source in self.of("frontier") for row in source.data["rows"])
        return any(s.kind == "adaptation" or s.of_adapted for s in self.sources) or any(
            row.get("kind") == "adapted" for row in rows
        )

    @property
    def _adapted(self) -> set[str | None]:
        return {s.fingerprint for s in self.sources if s.of_adapted}


def collect(paths: Sequence[Path]) -> Collection:
    """Read results and see that they are of one model.

    Weights that `dejavu adapt` made of the model belong to it where the folder of the adapted model is among `paths`.

    Raises:
        InputError: a file is unreadable, of no known kind, malformed, given twice, or of another model than the rest.
        PlanError: a plan is damaged.
    """
    sources: dict[Path, Source] = {}
    for path in paths:
        for source in read_result(path):
            sources[place(source.path)] = source
    if not sources:
        raise InputError("no results", fix="give files of dejavu eval, bench, analyze, train or adapt")
    found = Collection(tuple(sources.values()))
    _agree((s for s in found.sources if not found.adapted(s) and s.fingerprint), by_name=False)
    _agree((s for s in found.sources if s.kind == "bench" and not s.fingerprint), by_name=True)
    real = next((s for s in found.sources if s.fingerprint), None)
    synthetic = next((s for s in found.sources if s.synthetic), None)
    if real and synthetic:
        raise _differ(real, synthetic)
    return found


def _agree(sources: Iterable[Source], *, by_name: bool) -> None:
    first = None
    for source in sources:
        first = first or source
        if (source.model if by_name else source.fingerprint) != (
            first.model if by_name else first.fingerprint
        ):
            raise _differ(first, source)


def _differ(first: Source, other: Source) -> InputError:
    return InputError(
        f"these are of different models: {_identity(first)} and {_identity(other)}",
        fix="make one page for each; an adapted model shares its base's page where its folder is given too",
    )


def _identity(source: Source) -> str:
    name = f" {source.model}" if source.model else ""
    fingerprint = f" (fingerprint {source.fingerprint[:16]})" if source.fingerprint else ""
    synthetic = " with synthetic weights" if source.synthetic else ""
    return f"{source.path} of{name or ' a model'}{synthetic}{fingerprint}"
