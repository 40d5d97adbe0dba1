"""`adapt_model`: from a model and text to a model that bears its plan. The order of the steps is visible here."""

from __future__ import annotations

import dataclasses
import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dejavu.adapt.distill import distill
from dejavu.adapt.export import PLAN_FOLDER, add_tokenizer, base_name, write_card
from dejavu.adapt.masks import PlanMasks
from dejavu.adapt.student import ATTENTION, Student
from dejavu.engine import NativeExecutor
from dejavu.engine.core import chosen_isa
from dejavu.errors import InputError, PlanError
from dejavu.evaluation.perplexity import Document, measure_perplexity
from dejavu.models.folder_writer import FloatCodec, config_json, write_folder
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, Dense, LayerPlan, Pick, Sketch
from dejavu.training.stream import TokenStream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dejavu.adapt.distill import State
    from dejavu.adapt.options import AdaptOptions
    from dejavu.models.loading import OpenModel
    from dejavu.plan import NeuronSelector
    from dejavu.tokenizer import Tokenizer
    from dejavu.training.corpus import Corpus
    from dejavu.training.progress import Progress

VERIFY_TOKENS = 20_000
"""Held-out text for the native engine's figures."""
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
        output: folder that is made; ``output.checkpoint`` beside it keeps an interrupted run.
        model: how the user named the model, for the card.
        resume: go on from the checkpoint.
        threads: for everything.
        command: for the card.
        progress: told of the stages.

    Returns:
        The figures of the run, JSON-able; they are in the folder too.

    Raises:
        InputError: too little text, an output that is there already, or a checkpoint in the way or of another run.
        PlanError: a plan for another model, or of a kind that cannot be trained under.
        UnsupportedModelError: a model that cannot be trained, or written as a folder.
        NumericsError: the training leads to NaN; the last checkpoint stays.
        CacheError: a checkpoint or the output cannot be written.
    """
    if output.exists():
        raise InputError(f"{output} is there already", fix="give another -o, or remove it")
    config_json(opened.config)  # or say now that it cannot be written
    dtype = torch.bfloat16 if chosen_isa() in _FAST_BF16 else torch.float32
    config = opened.config
    selectors, densities = _wanted(opened, options)
    stream = TokenStream(corpus, tokenizer, context=config.max_context)
    student = Student(config, opened.weights, options, dtype, threads)
    masks = PlanMasks(
        config,
        selectors,
        densities,
        codec=options.codec,
        masters=student.masters,
        dtype=dtype,
        threads=threads,
    )
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    plain = {k: v for k, v in dataclasses.asdict(options).items() if k not in ("plan", "hours", "tokens")}
    settings = {
        "model": opened.weights.fingerprint,
        "text": corpus.fingerprint,
        "options": plain,
        "selectors": [str(selector.kind) for selector in selectors],
        "densities": list(densities),
    }
    distilled = distill(
        student,
        masks,
        stream,
        options,
        checkpoint=checkpoint,
        resume=resume,
        settings=settings,
        report=_reporter(options, progress),
    )
    last = distilled.curve[-1]
    evidence: dict[str, Any] = {
        "command": command,
        "base": base_name(model),
        "machine": platform.machine(),
        "options": plain,
        "selectors": " and ".join(sorted({_describe(selector) for selector in selectors})),
        "attention_share": ATTENTION,
        "density": sum(densities) / len(densities),
        "documents": len(corpus.training),
        "tokens": last.tokens,
        "turns": distilled.turns,
        "seconds": last.seconds,
        "tokens_per_s": last.tokens / max(last.seconds, 1e-9),
        "ppl_ratio": distilled.final.ratio,
        "divergence": distilled.final.divergence,
        "densities": list(distilled.final.densities),
        "curve": [dataclasses.asdict(point) for point in distilled.curve],
    }
    held_out = _documents(stream)

    def add_files(folder: Path) -> None:
        add_tokenizer(folder, opened)
        plan = _plan(folder, masks)
        evidence["native"] = _verify(opened, folder, plan, held_out, options, threads, progress)
        name = f"adapted, density {evidence['native']['density']:.2f}"
        dataclasses.replace(plan, name=name, evidence=_for_plan(evidence)).save(folder / PLAN_FOLDER)
        write_card(folder, evidence["base"], opened, evidence)

    values = student.values()
    largest = max(float(np.abs(value).max()) for value in values.values())
    codec: FloatCodec = "f16" if largest <= LARGEST_F16 else "f32"
    write_folder(output, config, values.__getitem__, codec=codec, add_files=add_files)
    checkpoint.unlink(missing_ok=True)
    return evidence


def _wanted(opened: OpenModel, options: AdaptOptions) -> tuple[tuple[NeuronSelector, ...], tuple[float, ...]]:
    """Selector and density of each layer."""
    layers = opened.config.n_layers
    if options.density is not None:
        return (Sketch(bits=options.bits, threshold=0.0),) * layers, (options.density,) * layers
    plan = options.plan
    assert plan is not None  # noqa: S101
    plan.check_fits(opened.config, opened.weights.fingerprint)
    if any(not isinstance(x.heads, Dense) or x.compensator is not None for x in plan.layers):
        raise PlanError(
            f"the plan {plan.name!r} selects heads or has compensators; a model is adapted to selected neurons",
            fix="train a plan without --heads-density and --compensator",
        )
    densities = []
    for layer, selector in enumerate(x.neurons for x in plan.layers):
        found: object = 1.0 if isinstance(selector, Dense) else getattr(selector, "density", None)
        if found is None:
            layers_found = plan.evidence.get("layers", [])
            if layer < len(layers_found):
                found = layers_found[layer].get("neurons", {}).get("density")
        if not isinstance(found, float):
            raise PlanError(
                f"the plan {plan.name!r} does not say the density of layer {layer}",
                fix="train it anew: dejavu train MODEL --text FILE -o PLAN",
            )
        densities.append(found)
    return tuple(x.neurons for x in plan.layers), tuple(densities)


def _describe(selector: NeuronSelector) -> str:
    return f"{selector.bits}-bit sketches" if isinstance(selector, Sketch) else str(selector.kind)


def _reporter(options: AdaptOptions, progress: Progress) -> Any:
    """Turns states into movements of a bar: of tokens, or of seconds where the time is given."""
    total = options.tokens if options.tokens is not None else round(3600 * (options.hours or 0))
    progress.start("distilling" if options.tokens is not None else "distilling (seconds)", total)
    shown = 0

    def report(state: State) -> None:
        nonlocal shown
        now = min(round(state.done * total), total)
        progress.advance(now - shown, str(state))
        shown = now

    return report


def _plan(folder: Path, masks: PlanMasks) -> AccessPlan:
    """The masks as a plan for the model in `folder`."""
    adapted = open_model(folder)
    try:
        fingerprint = adapted.weights.fingerprint
    finally:
        adapted.close()
    layers = []
    for selector, threshold in zip(masks.selectors, masks.thresholds, strict=True):
        if isinstance(selector, Pick) and threshold > float("-inf"):
            selector = dataclasses.replace(selector, density=None, threshold=threshold)
        else:
            selector = Dense()
        layers.append(LayerPlan(neurons=selector))
    return AccessPlan(model=fingerprint, layers=tuple(layers))


def _documents(stream: TokenStream) -> list[Document]:
    """Held-out documents that the curve was not taken on, where there are enough of them."""
    from dejavu.adapt.distill import VALIDATION_TOKENS

    pieces = stream.validation(VERIFY_TOKENS, skip=VALIDATION_TOKENS) or stream.validation(VERIFY_TOKENS)
    return [Document(tuple(piece.tolist())) for piece in pieces]


def _verify(
    opened: OpenModel,
    folder: Path,
    plan: AccessPlan,
    documents: Sequence[Document],
    options: AdaptOptions,
    threads: int,
    progress: Progress,
) -> dict[str, Any]:
    """Perplexity of the adapted model by its plan against the dense original, on the native engine."""
    tokens = sum(document.scored for document in documents)
    progress.start("verifying", 2 * tokens)
    base = NativeExecutor.load(opened.path, codec="bf16", threads=threads, cache=False)
    try:
        dense = measure_perplexity(base, documents, progress=progress.advance)
    finally:
        base.close()
    adapted = NativeExecutor.load(
        folder, codec=options.codec, nested=plan.needs_nested, threads=threads, cache=False
    )
    try:
        adapted.set_plan(plan)
        masked = measure_perplexity(adapted, documents, path="masked", progress=progress.advance)
        neurons = adapted.last_stats["neurons"]
    finally:
        adapted.close()
    return {
        "tokens": tokens,
        "base_codec": "bf16",
        "base_ppl": dense.perplexity,
        "ppl_ratio": masked.ratio(dense),
        "density": sum(neurons) / len(neurons),
        "densities": neurons,
    }


def _for_plan(evidence: dict[str, Any]) -> dict[str, Any]:
    """What the plan itself keeps."""
    native = evidence["native"]
    return {
        "command": evidence["command"],
        "codec": evidence["options"]["codec"],
        "ppl_ratio": native["ppl_ratio"],
        "neurons": {"density": native["density"]},
        "tokens": {"training": evidence["tokens"], "verification": native["tokens"]},
        "layers": [{"neurons": {"density": density}} for density in native["densities"]],
    }
