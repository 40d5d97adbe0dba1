"""`Frontier`: a run over several densities, beside what the original can do: quality and speed of each."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.adapt.export import ADAPTATION_NAME
from dejavu.adapt.frontier_card import frontier_card, frontier_svg
from dejavu.adapt.training_free import uniform_sketches
from dejavu.bench.cases import Case, Setting, Test
from dejavu.bench.runner import run_cases
from dejavu.bench.subjects import model_subject
from dejavu.engine import NativeExecutor
from dejavu.engine.core import chosen_isa
from dejavu.environment import describe_machine, versions
from dejavu.models.store import atomic_write
from dejavu.plan import AccessPlan
from dejavu.plan.choice import GENTLER, OWN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dejavu.adapt.options import AdaptOptions
    from dejavu.adapt.verify import Verifier
    from dejavu.bench.results import Result
    from dejavu.executor import KvDtype
    from dejavu.models.loading import OpenModel
    from dejavu.training.progress import Progress
    from dejavu.training.stream import TokenStream

SCHEMA = 1
"""Version of the layout of frontier.json."""
STEPS, REPEATS = 128, 5
"""Tokens that are generated to take speeds, and how often; as `dejavu bench` does by default."""
KV_DTYPE: KvDtype = "f16"

TRAINING_FREE = "training-free"


@dataclass(frozen=True)
class _Setting:
    """What one row of the frontier runs."""

    kind: str
    density: float
    model: Path
    plan: AccessPlan | None
    figures: dict[str, Any]
    """Of `Verifier.measure`."""

    @property
    def name(self) -> str:
        return "off" if self.plan is None else f"{self.kind} {self.density:g}"


class Frontier:
    """The folder of a frontier.

    A model per density in a folder of that name (with gentler plans for the same weights in its ``gentler``), the plans
    of the original at the same densities in ``training-free``, and in the end ``frontier.json``, ``frontier.svg`` and
    ``README.md``.

    Args:
        opened: the original.
        stream: the text.
        options: the densities, and what they are run with.
        output: the folder.
        base: name of the original.
        threads: of the engine.
        progress: told of what is measured.
    """

    def __init__(
        self,
        opened: OpenModel,
        stream: TokenStream,
        options: AdaptOptions,
        output: Path,
        base: str,
        threads: int,
        progress: Progress,
    ) -> None:
        self._opened = opened
        self._stream = stream
        self._options = options
        self._output = output
        self._base = base
        self._threads = threads
        self._progress = progress

    def folder(self, density: float) -> Path:
        """Where the model of a density lies."""
        return self._output / f"{density:g}"

    def measure(self, verifier: Verifier, command: str) -> dict[str, Any]:
        """Hold the adapted models against the original, dense and by training-free plans, and write what comes of it.

        Args:
            verifier: takes the perplexities.
            command: to be noted.

        Returns:
            What is in frontier.json: settings, and ``rows`` with kind ("adapted", "gentler", "training-free" or "dense"),
            density, touched_share, ppl_ratio, tokens_per_s, model and plan (folders in the output; None: the original,
            dense).

        Raises:
            CacheError: the output cannot be written.
            NumericsError: a plan leads to NaN.
        """
        settings = [*self._adapted(), *self._training_free(verifier), self._dense(verifier)]
        results = self._time(settings, verifier)
        machine = {**dataclasses.asdict(describe_machine()), "isa": chosen_isa(), "versions": versions()}
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "command": command,
            "base": self._base,
            "fingerprint": self._opened.weights.fingerprint,
            "machine": machine,
            "codec": self._options.codec,
            "bits": self._options.sketch.bits,
            "threads": self._threads,
            "kv_dtype": KV_DTYPE,
            "test": results[0].case.test.label,
            "repeats": REPEATS,
            **{name: settings[-1].figures[name] for name in ("tokens", "base_codec", "base_ppl")},
            "rows": [self._row(s, r) for s, r in zip(settings, results, strict=True)],
        }
        self._write("frontier.svg", frontier_svg(found))
        self._write("README.md", frontier_card(found))
        self._write("frontier.json", json.dumps(found, indent=1))
        return found

    def _adapted(self) -> list[_Setting]:
        found, gentler = [], []
        for density in self._options.densities:
            folder = self.folder(density)
            if not folder.exists():  # it was moved away since it was made
                continue
            known = json.loads((folder / ADAPTATION_NAME).read_text(encoding="utf-8"))
            plan = AccessPlan.load(folder / OWN)
            found.append(_Setting("adapted", density, folder, plan, known["native"]))
            gentler = [
                _Setting("gentler", x["target"], folder, AccessPlan.load(folder / x["plan"]), x)
                for x in known["gentler"]
            ]
        return [*found, *gentler]

    def _training_free(self, verifier: Verifier) -> list[_Setting]:
        o, original = self._options, self._opened.path
        plans = uniform_sketches(
            self._opened,
            self._stream,
            o.densities,
            bits=o.sketch.bits,
            values=o.values,
            codec=o.codec,
            threads=self._threads,
            progress=self._progress,
        )
        found = []
        for density, plan in zip(o.densities, plans, strict=True):
            figures = verifier.measure(original, plan)
            evidence = {
                "codec": o.codec,
                "ppl_ratio": figures["ppl_ratio"],
                "neurons": {"density": figures["density"]},
                "tokens": {"verification": figures["tokens"]},
                "layers": [{"neurons": {"density": x}} for x in figures["densities"]],
            }
            plan = dataclasses.replace(plan, evidence=evidence)
            plan.save(self._output / TRAINING_FREE / f"{density:g}")
            found.append(_Setting(TRAINING_FREE, density, original, plan, figures))
        return found

    def _dense(self, verifier: Verifier) -> _Setting:
        return _Setting("dense", 1.0, self._opened.path, None, verifier.measure(self._opened.path, None))

    def _time(self, settings: Sequence[_Setting], verifier: Verifier) -> list[Result]:
        """Tokens/s of all settings in turn, on held-out text; as `dejavu bench` takes them."""
        named = {setting.name: setting for setting in settings}
        codec = self._options.codec

        def load(wanted: Setting) -> NativeExecutor:
            setting = named[wanted.plan]
            runs = NativeExecutor.load(
                setting.model,
                codec=codec,
                kv_dtype=KV_DTYPE,
                leading=setting.plan.leading if setting.plan is not None else 0,
                threads=wanted.threads,
                cache=False,
            )
            runs.set_plan(setting.plan)
            return runs

        original = model_subject(str(self._opened.path.resolve()))
        text = np.concatenate([np.array(document.tokens, np.int32) for document in verifier.documents])
        subject = dataclasses.replace(original, tokens=text, load=load)
        test = Test("tg", min(STEPS, subject.max_context))
        cases = [Case(Setting(codec, KV_DTYPE, self._threads, name), test) for name in named]
        planned = sum(setting.plan is not None for setting in settings)
        # Loading and warming up are two more rounds; plans are checked in the end.
        self._progress.start("timing", (2 + REPEATS) * len(cases) + planned)
        return run_cases(
            subject, cases, repeats=REPEATS, progress=lambda what: self._progress.advance(1, what)
        )

    def _row(self, setting: _Setting, result: Result) -> dict[str, Any]:
        name = f"{setting.density:g}"
        places: dict[str, tuple[str | None, str | None]] = {
            "adapted": (name, f"{name}/{OWN}"),
            "gentler": (setting.model.name, f"{setting.model.name}/{GENTLER}/{name}"),
            TRAINING_FREE: (None, f"{TRAINING_FREE}/{name}"),
            "dense": (None, None),
        }
        model, plan = places[setting.kind]
        return {
            "kind": setting.kind,
            "target": setting.density,
            **{key: setting.figures[key] for key in ("density", "touched_share", "ppl_ratio")},
            "tokens_per_s": result.median,
            "spread": result.spread,
            "seconds": list(result.seconds),
            "model": model,
            "plan": plan,
        }

    def _write(self, name: str, content: str) -> None:
        with atomic_write(self._output / name) as stream:
            stream.write(content.encode())
