"""`adapt_model`: from a model and text to a model that bears its plan. The order of the steps is visible here."""

from __future__ import annotations

import dataclasses
import platform
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dejavu.adapt.aims import identity, wanted
from dejavu.adapt.distill import check_unused, distill
from dejavu.adapt.export import base_name, write_card
from dejavu.adapt.frontier import Frontier
from dejavu.adapt.gates import Gates
from dejavu.adapt.masks import PlanMasks, leading_weights
from dejavu.adapt.regress import Regressor, first_checkpoint, joined, split
from dejavu.adapt.reporter import Reporter
from dejavu.adapt.share import ATTENTION
from dejavu.adapt.student import Student
from dejavu.adapt.teacher import Teacher, check_whole
from dejavu.adapt.twin import Twin
from dejavu.adapt.verify import Verifier
from dejavu.conversion import add_text_files
from dejavu.engine.core import chosen_isa
from dejavu.errors import InputError
from dejavu.models.adapter_config import Adapter
from dejavu.models.folder_writer import FloatCodec, config_json, write_folder
from dejavu.models.loading import hf_layout, open_model
from dejavu.models.lora import write_adapter
from dejavu.plan import AccessPlan, LayerPlan
from dejavu.plan.choice import GENTLER, OWN
from dejavu.training.stream import TokenStream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.adapt.distill import Distilled
    from dejavu.adapt.options import AdaptOptions
    from dejavu.codecs import Codec
    from dejavu.models.loading import OpenModel
    from dejavu.plan import NeuronSelector
    from dejavu.tokenizer import Tokenizer
    from dejavu.training.corpus import Corpus
    from dejavu.training.progress import Progress

LARGEST_F16 = 60_000.0
"""Weights up to this are written as float16, which keeps more of them than bfloat16."""
_FAST_BF16 = ("amx", "avx512bf16")


def adapt_model(
    opened: OpenModel,
    tokenizer: Tokenizer,
    corpus: Corpus,
    options: AdaptOptions,
    output: Path,
    *,
    model: str,
    teacher: Teacher | None = None,
    resume: bool = False,
    threads: int,
    command: str = "",
    progress: Progress,
) -> dict[str, Any]:
    """Distil, export and verify.

    Args:
        opened: the model; closed by the caller.
        tokenizer: belongs to it.
        corpus: the text.
        options: how.
        output: folder that is made, of the model; for a frontier of a model per density (see `Frontier`), each written as
            soon as it is done. ``output.checkpoint`` beside it keeps an interrupted run (of a twin, with
            ``output.regression.checkpoint``).
        model: how the user named the model, for the card and for an adapter: whoever opens that needs the same model
            under this name.
        teacher: the model that is learned from, and that all is compared with; None: the model itself, as it is now.
        resume: go on from the checkpoint.
        threads: for everything.
        command: for the card.
        progress: told of the stages.

    Returns:
        The figures of the run, JSON-able; they are in the folder too.

    Raises:
        InputError: too little text, a delta or an adapter as the model, a teacher of another shape or with other tokens, an
            output that is there already, or a checkpoint in the way or of another run.
        PlanError: a plan for another model, or of a kind that cannot be trained under.
        UnsupportedModelError: a model that cannot be trained, or written as a folder.
        NumericsError: the training leads to NaN; the last checkpoint stays.
        CacheError: a checkpoint or the output cannot be written.
    """
    checkpoint = output.absolute()  # "." has no name
    checkpoint = checkpoint.with_name(f"{checkpoint.name}.checkpoint")
    check_whole(model, opened)
    if teacher is not None:
        check_whole(teacher.name, teacher.opened)
        teacher.check_fits(opened, tokenizer)
    _check_output(output, checkpoint, resume=resume and options.frontier is not None)
    if options.adapter is None:
        config_json(opened.config)  # or say now that it cannot be written
    stream = TokenStream(corpus, tokenizer, context=opened.config.max_context)
    recipe = _Recipe(opened, corpus, stream, options, model, teacher, threads, command, progress)
    if options.frontier is None:
        evidence = recipe.distil(checkpoint, resume, [output])
    else:
        original = Teacher(model, opened, tokenizer) if teacher is None else teacher
        frontier = Frontier(
            original.opened, stream, options, output, base_name(original.name), threads, progress
        )
        recipe.distil(checkpoint, resume, [frontier.folder(density) for density in options.densities])
        evidence = frontier.measure(recipe.verifier, command)
    for part in (checkpoint, first_checkpoint(checkpoint)):
        part.unlink(missing_ok=True)
    return evidence


def _check_output(output: Path, checkpoint: Path, *, resume: bool) -> None:
    """Raise `InputError` if the output is in the way; where it is gone on with, remove what was written by half."""
    if output.exists() and not (resume and checkpoint.exists()):
        left = "go on with it by --resume, or " if checkpoint.exists() else ""
        raise InputError(f"{output} is there already", fix=f"{left}give another -o, or remove it")
    for part in output.glob(".*.tmp"):
        shutil.rmtree(part, ignore_errors=True)


class _Recipe:
    def __init__(
        self,
        opened: OpenModel,
        corpus: Corpus,
        stream: TokenStream,
        options: AdaptOptions,
        model: str,
        teacher: Teacher | None,
        threads: int,
        command: str,
        progress: Progress,
    ) -> None:
        self._opened = opened
        self._corpus = corpus
        self._stream = stream
        self._options = options
        self._model = model
        self._base = base_name(model)
        self._teacher = teacher
        self._threads = threads
        self._command = command
        self._progress = progress
        self._plain = {
            name: list(value) if isinstance(value, tuple) else value  # as JSON gives it back
            for name, value in dataclasses.asdict(options).items()
            if name not in ("plan", "hours", "tokens")
        }
        self._dtype = torch.bfloat16 if chosen_isa() in _FAST_BF16 else torch.float32
        self._twin = None if options.activation == "keep" else Twin.of(opened.config, options.activation)
        self._begun: Distilled | None = None
        original = opened if teacher is None else teacher.opened
        self.verifier = Verifier(original.path, stream, options.codec, threads, progress)

    def distil(self, checkpoint: Path, resume: bool, folders: Sequence[Path]) -> dict[str, Any]:
        """Write a model to each of `folders`, one per stage; those that are there stay. Returns the last one's figures."""
        opened, options = self._opened, self._options
        selectors, stages = wanted(opened, options)
        settings = {
            "model": opened.weights.fingerprint,
            "teacher": None if self._teacher is None else self._teacher.opened.weights.fingerprint,
            "text": self._corpus.fingerprint,
            "options": self._plain,
            "selectors": [identity(selector) for selector in selectors],
            "densities": [list(densities) for densities in stages],
        }
        if self._twin is None:
            leading = leading_weights(opened.config, selectors, options.codec)
            student = self._student(Student, options, leading=leading)
            masks = self._masks(selectors, stages[0], student)
        else:
            if not resume:
                check_unused(checkpoint)  # now, not after the first part
            self._begun, start = self._regress(self._twin, first_checkpoint(checkpoint), resume, settings)
            resume, options = resume and checkpoint.exists(), split(options)[1]
            student = self._student(Student, options, start=start)
            del start
            masks = Gates(self._twin, stages[0])
        evidence: dict[str, Any] = {}
        for distilled in distill(
            student,
            masks,
            self._stream,
            options,
            stages=stages,
            checkpoint=checkpoint,
            resume=resume,
            settings=settings,
            report=Reporter(options, self._progress, "distilling"),
        ):
            folder = folders[distilled.stage]
            if not folder.exists():  # or a run that was interrupted after it had written it
                evidence = self._evidence(distilled, masks, stages)
                self._write(folder, student, masks, evidence, distilled.gentler)
        return evidence

    def _student(
        self,
        kind: type[Student],
        options: AdaptOptions,
        *,
        leading: Mapping[str, tuple[Codec, int]] | None = None,
        start: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> Student:
        twin = None if self._twin is None else self._twin.config
        opened, teacher = self._opened, self._teacher
        return kind(
            opened.config,
            opened.weights,
            options,
            self._dtype,
            self._threads,
            teacher=None if teacher is None else (teacher.opened.config, teacher.opened.weights),
            twin=twin,
            leading=leading,
            start=start,
        )

    def _masks(
        self, selectors: Sequence[NeuronSelector], densities: Sequence[float], student: Student
    ) -> PlanMasks:
        return PlanMasks(
            self._opened.config,
            selectors,
            densities,
            codec=self._options.codec,
            masters=student.masters,
            held=student.held,
            dtype=self._dtype,
            threads=self._threads,
        )

    def _regress(
        self, twin: Twin, checkpoint: Path, resume: bool, settings: dict[str, Any]
    ) -> tuple[Distilled, dict[str, NDArray[np.float32]]]:
        """The first part of making a twin: what came of it, and the linears that the rest begins with."""
        options = split(self._options)[0]
        student = self._student(Regressor, options)
        natural = (1.0,) * twin.config.n_layers
        (distilled,) = distill(
            student,
            Gates(twin, natural),
            self._stream,
            options,
            stages=[natural],
            checkpoint=checkpoint,
            resume=resume,
            settings=settings,
            report=Reporter(options, self._progress, "regressing"),
        )
        return distilled, {name: tensor.numpy() for name, tensor in student.masters.items()}

    def _evidence(
        self, distilled: Distilled, masks: PlanMasks, stages: Sequence[Sequence[float]]
    ) -> dict[str, Any]:
        curve, begun, options = distilled.curve, self._begun, self._options
        if begun is not None:
            curve = joined(begun.curve, curve, whole=distilled.stage == 0)
        last = curve[-1]
        return {
            "command": self._command,
            "base": self._base,
            "teacher": None if self._teacher is None else base_name(self._teacher.name),
            "machine": platform.machine(),
            "options": self._plain,
            "stages": [sum(densities) / len(densities) for densities in stages[: distilled.stage + 1]],
            "selectors": masks.description,
            "regression": None if begun is None else dataclasses.asdict(begun.curve[-1]),
            "adapter": None
            if options.adapter is None
            else dict(zip(("rank", "alpha"), options.adapter, strict=True)),
            "attention_share": ATTENTION,
            "density": sum(masks.targets) / len(masks.targets),
            "documents": len(self._corpus.training),
            "tokens": last.tokens,
            "turns": distilled.turns,
            "seconds": last.seconds,
            "tokens_per_s": last.tokens / max(last.seconds, 1e-9),
            "ppl_ratio": distilled.final.ratio,
            "divergence": distilled.final.divergence,
            "densities": list(distilled.final.densities),
            "recalls": list(distilled.final.recalls),
            "curve": [dataclasses.asdict(point) for point in curve],
        }

    def _write(
        self,
        target: Path,
        student: Student,
        masks: PlanMasks,
        evidence: dict[str, Any],
        gentler: Sequence[Sequence[NeuronSelector]],
    ) -> None:
        """Write the student with its plans and card to `target`, whole or not at all; completes `evidence`."""

        def add_plan(folder: Path, place: str, selectors: Sequence[NeuronSelector]) -> dict[str, Any]:
            plan = _plan(folder, selectors)
            native = self.verifier.measure(folder, plan)
            name = f"adapted, density {native['density']:.2f}"
            dataclasses.replace(plan, name=name, evidence=_for_plan(evidence, native)).save(folder / place)
            return native

        def add_files(folder: Path) -> None:
            add_text_files(self._opened, folder)
            evidence["native"] = add_plan(folder, OWN, masks.deployed())
            evidence["gentler"] = []
            for density, selectors in zip(self._options.densities, gentler, strict=False):
                place = f"{GENTLER}/{density:g}"
                found = add_plan(folder, place, selectors)
                evidence["gentler"].append({"plan": place, "target": density} | found)
            write_card(folder, self._base, self._opened, evidence)

        config = self._opened.config
        if self._options.adapter is not None:
            rank, alpha = self._options.adapter
            adapter = Adapter(self._model, rank, alpha)
            layout = hf_layout(self._opened)
            write_adapter(target, config, layout, student.factors(), adapter, add_files=add_files)
            return
        values = student.values()
        if self._twin is not None:
            config, values = self._twin.publish(masks.thresholds, values)
        largest = max(float(np.abs(value).max()) for value in values.values())
        codec: FloatCodec = "f16" if largest <= LARGEST_F16 else "f32"
        write_folder(target, config, values.__getitem__, codec=codec, add_files=add_files)


def _plan(folder: Path, selectors: Sequence[NeuronSelector]) -> AccessPlan:
    """A plan for the model in `folder`."""
    adapted = open_model(folder)
    try:
        fingerprint = adapted.weights.fingerprint
    finally:
        adapted.close()
    layers = tuple(LayerPlan(neurons=selector) for selector in selectors)
    return AccessPlan(model=fingerprint, layers=layers)


def _for_plan(evidence: dict[str, Any], native: dict[str, Any]) -> dict[str, Any]:
    """What a plan itself keeps."""
    return {
        "command": evidence["command"],
        "codec": evidence["options"]["codec"],
        "exact": evidence["regression"] is not None,
        "ppl_ratio": native["ppl_ratio"],
        "neurons": {"density": native["density"]},
        "tokens": {"training": evidence["tokens"], "verification": native["tokens"]},
        "layers": [{"neurons": {"density": density}} for density in native["densities"]],
    }
