"""dejavu train."""

from __future__ import annotations

import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dejavu.cli import options
from dejavu.cli.options import CodecName, ExecutorName
from dejavu.cli.output import print_fields, print_json, print_note


class SelectorName(str, Enum):
    """Values of --selector."""

    auto = "auto"
    sketch = "sketch"
    low_rank = "low_rank"
    threshold = "threshold"


class HiddenName(str, Enum):
    """Values of --hidden."""

    linear = "linear"
    relu = "relu"


class LearnName(str, Enum):
    """Values of --learn."""

    sizes = "sizes"
    labels = "labels"


class KvPolicyName(str, Enum):
    """Values of --kv-policy."""

    write = "write"
    recompute = "recompute"


def train(
    model: options.Model,
    text: Annotated[
        list[Path],
        typer.Option(help=f"{options.TEXT_HELP}; may be repeated."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the plan.")],
    density: Annotated[
        float | None,
        typer.Option(
            help="Mean share of the neurons that a token runs, such as 0.4. This or --max-ppl-ratio is needed."
        ),
    ] = None,
    max_ppl_ratio: Annotated[
        float | None,
        typer.Option(
            help="The highest perplexity over that of the dense model, such as 1.02, in the place of --density."
        ),
    ] = None,
    selector: Annotated[
        SelectorName,
        typer.Option(
            help="How neurons are chosen: by the leading bits of their weights (sketch), by trained low-rank "
            "predictors, by their exact first product (threshold), or per layer as it pays (auto)."
        ),
    ] = SelectorName.auto,
    bits: Annotated[
        list[int] | None,
        typer.Option(
            help="Leading bits of sketches, 2 to 5; may be repeated. Default: 4. 3 or 5 alone read so many; 2, or several "
            "up to 4, read four."
        ),
    ] = None,
    values: Annotated[
        options.ValuesName,
        typer.Option(
            help="What a neuron holds that a sketch chose: exact: gate and up by all their bits; leading: by the bits "
            "that chose it, which a model that was not adapted bears with --bits 5."
        ),
    ] = options.ValuesName.exact,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Of low-rank predictors; default 128. With auto: train them too."),
    ] = None,
    hidden: Annotated[
        HiddenName, typer.Option(help="Middle layer of low-rank predictors.")
    ] = HiddenName.linear,
    learn: Annotated[
        LearnName | None,
        typer.Option(
            help="What low-rank predictors learn: how large what a neuron gives is (sizes), or whether it is active "
            "(labels, as in Deja Vu). Default: sizes; with --hidden relu labels."
        ),
    ] = None,
    lookahead: Annotated[
        int, typer.Option(min=0, max=2, help="Choose by the input of the layer so many layers before.")
    ] = 0,
    heads_density: Annotated[
        float | None,
        typer.Option(help="Mean share of the heads, by low-rank predictors; default: all heads."),
    ] = None,
    heads_rank: Annotated[int, typer.Option(min=1, help="Of their predictors.")] = 32,
    compensator: Annotated[
        int | None,
        typer.Option(
            min=0, help="Rank of what stands in for skipped neurons, where that pays; 0: their mean."
        ),
    ] = None,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="The same density in all layers, without a search.")
    ] = False,
    kv_policy: Annotated[
        KvPolicyName,
        typer.Option(
            help="Keys and values of heads that are skipped: computed all the same (write), or made up for when a head of "
            "their group is next selected (recompute)."
        ),
    ] = KvPolicyName.write,
    tokens: Annotated[
        int | None,
        typer.Option(min=1024, help="That low-rank predictors learn from; default: 65536; of labels 400000."),
    ] = None,
    search_tokens: Annotated[int, typer.Option(min=64, help="Held-out text of each measurement.")] = 2048,
    verify_tokens: Annotated[
        int, typer.Option(min=64, help="Other held-out text, for the evidence.")
    ] = 10_000,
    learning_rate: Annotated[float, typer.Option(help="Of low-rank predictors that learn labels.")] = 2e-3,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**63 - 1, help="Of the split of the text, its order, and the predictors."),
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a plan that lies there.")] = False,
    codec: options.Codec = CodecName.auto,
    threads: options.Threads = None,
    executor: options.Executor = ExecutorName.native,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Learn from text which neurons and heads a token needs, and save it as an access plan.

    Thresholds are set, predictors trained and densities divided among the layers so that perplexity suffers least. The
    plan carries the evidence: density, recall, precision and perplexity ratio on documents that were held out.
    """
    from dejavu.cli.progress import make_progress, stage_bars
    from dejavu.models.writing import check_folder
    from dejavu.nested import stored_bits
    from dejavu.plan.choice import check_place
    from dejavu.plan.summary import describe_evidence, misses_ratio
    from dejavu.training.corpus import Corpus
    from dejavu.training.options import TrainOptions
    from dejavu.training.recipe import train_plan
    from dejavu.training.subject import open_subject

    wanted = TrainOptions(
        selector=selector.value,
        density=density,
        max_ppl_ratio=max_ppl_ratio,
        uniform=uniform,
        bits=tuple(bits) if bits else None,
        values=values.value,
        rank=rank,
        hidden=hidden.value,
        learn=None if learn is None else learn.value,
        lookahead=lookahead,
        heads_density=heads_density,
        heads_rank=heads_rank,
        compensator=compensator,
        kv_policy=kv_policy.value,
        tokens=tokens,
        search_tokens=search_tokens,
        verify_tokens=verify_tokens,
        learning_rate=learning_rate,
        seed=seed,
    )
    check_place(output, force=force)
    if wanted.targets:  # their checkpoint lies beside it
        check_folder(output.absolute().parent)
    corpus = Corpus(text, seed=seed)
    subject = open_subject(
        model,
        codec=codec.value,
        leading=stored_bits(wanted.sketches),
        executor=executor.value,
        threads=threads,
        offline=offline or None,
        progress=make_progress(quiet=json),
    )
    checkpoint = output.absolute()  # "." has no name
    checkpoint = checkpoint.with_name(f"{checkpoint.name}.checkpoint")
    try:
        with stage_bars(quiet=json) as progress:
            plan = train_plan(
                subject,
                corpus,
                wanted,
                checkpoint=checkpoint,
                resume=resume,
                command=shlex.join(["dejavu", *sys.argv[1:]]),
                progress=progress,
            )
    finally:
        subject.close()
    plan.save(output)
    checkpoint.unlink(missing_ok=True)
    if misses_ratio(plan.evidence):
        print_note(
            f"the plan misses --max-ppl-ratio {max_ppl_ratio:g}: held-out text measures {plan.evidence['ppl_ratio']:.4f}; "
            "a larger --search-tokens makes the search surer, a lower --max-ppl-ratio leaves room"
        )
    if json:
        print_json({"model": model, "plan": str(output), **plan.evidence})
        return
    print_fields(describe_evidence(plan.evidence))
    name, folder = shlex.quote(model), shlex.quote(str(output))
    print_note(f'next: dejavu generate "Hello" -m {name} --plan {folder}, or dejavu plan show {folder}')
