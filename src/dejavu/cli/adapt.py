"""dejavu adapt."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dejavu.cli import options
from dejavu.cli.output import print_fields, print_json, print_note, print_table

if TYPE_CHECKING:
    from dejavu.adapt.options import ActivationName
    from dejavu.models.loading import OpenModel


class LossChoice(str, Enum):
    """Values of --loss."""

    forward = "forward-kl"
    reverse = "reverse-kl"
    mixed = "mixed"


class MethodChoice(str, Enum):
    """Values of --method."""

    full = "full"
    lora = "lora"


class PlaneCodec(str, Enum):
    """Values of --codec: those with leading bits."""

    int8 = "int8"
    int4 = "int4"


def adapt(
    model: options.Model,
    text: Annotated[
        list[Path],
        typer.Option(help=f"{options.TEXT_HELP}; may be repeated."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the adapted model.")],
    density: Annotated[
        float | None,
        typer.Option(
            help="Share of the neurons that a token runs in each layer, such as 0.33. This, --plan or --frontier is needed."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="In the place of --density: a plan of this model, whose selectors and densities to adapt to."
        ),
    ] = None,
    frontier: Annotated[
        str | None,
        typer.Option(
            help="In the place of --density: several such as 0.5,0.33,0.2, a model for each of them by one run, and a "
            "picture of quality against speed."
        ),
    ] = None,
    activation: Annotated[
        str,
        typer.Option(
            help="keep, or that of a twin with exact zeros: relu or drelu (thresholds in biases), shifted or fatrelu (in "
            "weights)."
        ),
    ] = "keep",
    method: Annotated[
        MethodChoice,
        typer.Option(
            help="full: all weights of the layers learn; lora: updates of low rank do, and make an adapter."
        ),
    ] = MethodChoice.full,
    rank: Annotated[int | None, typer.Option(min=1, help="Of lora's updates; default: 32.")] = None,
    alpha: Annotated[
        int | None, typer.Option(min=1, help="These count alpha / rank; default: as the rank.")
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(min=2, max=5, help="Leading bits that neurons are chosen by; default: 4."),
    ] = None,
    values: Annotated[
        options.ValuesName,
        typer.Option(
            help="What a chosen neuron holds: exact: gate and up by all their bits; leading: by those bits that chose it, "
            "and no others are read."
        ),
    ] = options.ValuesName.exact,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Of the same shape, to learn from in the place of this model: to go on, that which it was adapted from."
        ),
    ] = None,
    loss: Annotated[
        LossChoice, typer.Option(help="Between the predictions of the dense and the masked model.")
    ] = LossChoice.forward,
    match_hidden: Annotated[
        float, typer.Option(help="Weight of the distance between their residual streams; 0: none.")
    ] = 0.0,
    hours: Annotated[
        float | None,
        typer.Option(help="How long to train, all densities together. This or --tokens is needed."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="On how many tokens, in the place of --hours.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="At its highest, of the MLPs.")] = 2e-4,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a step, at least.")] = 1024,
    codec: Annotated[PlaneCodec, typer.Option(help="Codec that the model will run in.")] = PlaneCodec.int8,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of the split of the text and its order.")
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    threads: options.Threads = None,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Teach a model to live with sparse MLPs: distil it from itself under the masks that it will run on.

    Writes a folder in Hugging Face layout with the plan beside the weights, a model card with the recipe and the curve,
    and what the native engine measured on held-out text; with --method lora an adapter in the place of the weights, to be
    opened beside the model that it is of. With --frontier a folder per density, written as soon as it is
    done, and a comparison with the original.
    """
    from dejavu.training.missing import import_torch

    import_torch("adapting a model", "")
    from dejavu.adapt.frontier_card import HEADERS, frontier_rows
    from dejavu.adapt.options import AdaptOptions, parse_densities
    from dejavu.adapt.recipe import adapt_model
    from dejavu.adapt.teacher import Teacher
    from dejavu.cli.progress import make_progress, stage_bars
    from dejavu.engine.native import default_threads
    from dejavu.models.loading import fetch, open_model
    from dejavu.models.writing import check_folder
    from dejavu.plan import AccessPlan
    from dejavu.tokenizer import Tokenizer
    from dejavu.training.corpus import Corpus

    wanted = AdaptOptions(
        density=density,
        plan=AccessPlan.load(plan) if plan else None,
        frontier=parse_densities(frontier) if frontier is not None else None,
        activation=cast("ActivationName", activation),  # checked there
        method=method.value,
        rank=rank,
        alpha=alpha,
        bits=bits,
        values=values.value,
        codec=codec.value,
        loss=loss.value,
        match_hidden=match_hidden,
        hours=hours,
        tokens=tokens,
        learning_rate=learning_rate,
        batch_tokens=batch_tokens,
        seed=seed,
    )
    check_folder(output)
    corpus = Corpus(text, seed=seed)
    with ExitStack() as stack:

        def find(name: str) -> OpenModel:
            found = open_model(fetch(name, offline=offline or None, progress=make_progress(quiet=json)))
            stack.callback(found.close)
            return found

        opened = find(model)
        taught_by = None
        if teacher is not None:
            original = find(teacher)
            taught_by = Teacher(teacher, original, Tokenizer.from_model(original))
        with stage_bars(quiet=json) as progress:
            evidence = adapt_model(
                opened,
                Tokenizer.from_model(opened),
                corpus,
                wanted,
                output,
                model=model,
                teacher=taught_by,
                resume=resume,
                threads=threads or default_threads(),
                command=shlex.join(["dejavu", *sys.argv[1:]]),
                progress=progress,
            )
    if json:
        print_json({"model": model, "output": str(output), **evidence})
        return
    folder = shlex.quote(str(output))
    if frontier is not None:
        print_table(HEADERS, frontier_rows(evidence))
        print_note(f"next: see {folder}/README.md and {folder}/frontier.svg")
        return
    print_fields(_summary(evidence))
    print_note(f'next: dejavu generate "Hello" -m {folder}')


def _summary(evidence: dict[str, Any]) -> dict[str, str]:
    native, first = evidence["native"], evidence["curve"][0]
    return {
        "perplexity ratio": f"{native['ppl_ratio']:.4f} on {native['tokens']} held-out tokens, native engine",
        "before": f"{first['ratio']:.4f} with "
        + ("the activation and no training" if evidence["regression"] else "the same kind of masks"),
        "density": f"{native['density']:.3f}",
        "tokens": f"{evidence['tokens']} in {evidence['seconds'] / 60:.0f} minutes",
    }
