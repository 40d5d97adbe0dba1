"""dejavu plan show, dejavu plan check and dejavu plan logits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dejavu.cli import options
from dejavu.cli.output import print_fields, print_json, print_table
from dejavu.errors import PlanError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show, check and extend access plans.")

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="PLAN", help="The folder of a plan, or of a model that has its own; smollm2-sparse is one."
    ),
]

_HEADERS = ("layer", "neurons", "take", "by", "ahead", "heads", "take", "by", "ahead", "compensator", "bytes")


@app.command()
def show(plan: Folder, json: options.Json = False) -> None:
    """Show what a plan selects in each layer, and its evidence."""
    from dejavu.plan import AccessPlan
    from dejavu.plan.summary import describe_evidence, summarize
    from dejavu.units import human_bytes

    facts = summarize(AccessPlan.load(_folder(plan)))
    if json:
        print_json(facts)
        return
    print_fields(
        {
            "name": facts["name"] or "(none)",
            "model": facts["model"],
            "predictors": human_bytes(facts["bytes"]),
            "keys and values": _kv(facts["kv"]),
            "vocabulary": _vocabulary(facts["vocabulary"]),
            "codecs": ", ".join(facts["codecs"]),
            **describe_evidence(facts["evidence"]),
        }
    )
    print()
    print_table(_HEADERS, [_row(i, layer) for i, layer in enumerate(facts["layers"])])


@app.command()
def check(
    plan: Folder,
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help=f"Whether it is for this model. {options.MODEL_HELP}"),
    ] = None,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Check the files of a plan, and whether it is for a model."""
    from dejavu.plan import AccessPlan
    from dejavu.plan.summary import usable_codecs

    plan = _folder(plan)
    loaded = AccessPlan.load(plan)
    if model is not None:
        _check_model(loaded, model, offline=offline, quiet=json)
        codecs = usable_codecs(loaded)
        codec = "" if "f32" in codecs else f" --codec {codecs[0]}"
        what = "The plan is sound, and it is for this model."
        following = f'dejavu generate "Hello" -m {model} --plan {plan}{codec}'
    else:
        what = "The files of the plan are sound."
        following = f"dejavu plan check {plan} MODEL"
    if json:
        print_json({"plan": str(plan), "name": loaded.name, "model": model, "ok": True, "next": following})
        return
    print(what)
    print(f"next: {following}")


@app.command()
def logits(
    plan: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN",
            help="The folder of a plan, or of a model that has its own; off: a new one, dense but for the logits.",
        ),
    ],
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"That it is for. {options.MODEL_HELP}")],
    text: Annotated[
        list[Path],
        typer.Option(help=f"{options.TEXT_HELP}; may be repeated."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new plan.")],
    exact: Annotated[
        int | None,
        typer.Option(
            min=1, help="So many of the best logits are exact; default: 1024, or all of a smaller vocabulary."
        ),
    ] = None,
    verify_tokens: Annotated[int, typer.Option(min=64, help="Held-out text, for the cost.")] = 10_000,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of the split of the text and its order.")
    ] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a plan that lies there.")] = False,
    codec: options.Codec = options.CodecName.auto,
    threads: options.Threads = None,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Add to a plan that logits come from leading bits, but for the best ones, and say what it costs."""
    from dejavu.cli.progress import make_progress, stage_bars
    from dejavu.plan import AccessPlan
    from dejavu.plan.choice import check_place
    from dejavu.training.corpus import Corpus
    from dejavu.training.logits import EXACT, sketch_logits
    from dejavu.training.subject import open_subject

    loaded = None if plan == Path("off") else AccessPlan.load(_folder(plan))
    check_place(output, force=force)
    corpus = Corpus(text, seed=seed)
    made_for: Any = "auto" if loaded is None else loaded.evidence.get("codec", "auto")
    subject = open_subject(
        model,
        codec=codec.value if codec.value != "auto" else made_for,
        leading=0 if loaded is None else loaded.leading,
        threads=threads,
        offline=offline or None,
        progress=make_progress(quiet=json),
    )
    exact = min(EXACT, subject.opened.config.vocab_size) if exact is None else exact
    try:
        with stage_bars(quiet=json) as progress:
            found = sketch_logits(
                subject, loaded, corpus, exact=exact, verify_tokens=verify_tokens, progress=progress
            )
    finally:
        subject.close()
    found.save(output)
    told = found.evidence["vocabulary"]
    if json:
        print_json({"plan": str(output), "exact": exact, **told})
        return
    print(
        f"Perplexity on {told['verification']} held-out tokens becomes {told['cost']:.4f} times what it was."
    )
    print(
        f"Of the squared length of what the head multiplies {100 * told['mean_share']:.0f}% are the mean's, and "
        f"{100 * told['direction_share']:.0f}% of the rest lie along the directions that are more exact."
    )
    print(f'next: dejavu generate "Hello" -m {model} --plan {output}')


def _folder(plan: Path) -> Path:
    """Where the plan lies: in that folder, or in that of the model that is named.

    Raises:
        PlanError: the model has none of its own.
    """
    from dejavu.models.spec import ALIASES
    from dejavu.plan.choice import OWN, holds_plan, model_files

    if holds_plan(plan):
        return plan
    first, *rest = plan.parts or (".",)
    named = Path(ALIASES.get(first, first), *rest)
    if (found := next(filter(holds_plan, (named, named / OWN)), None)) is not None:
        return found
    if first in ALIASES or first.startswith(("pypi:", "hf:")) or model_files(plan):
        raise PlanError(
            f"{plan} has no plan of its own",
            fix="give the folder of a plan; dejavu train and dejavu plan logits make them",
        )
    return plan


def _check_model(plan: Any, model: str, *, offline: bool, quiet: bool) -> None:
    from dejavu.cli.progress import make_progress
    from dejavu.models.loading import fetch, open_model

    opened = open_model(fetch(model, offline=offline or None, progress=make_progress(quiet=quiet)))
    try:
        plan.check_fits(opened.config, opened.weights.fingerprint)
    finally:
        opened.close()


def _row(number: int, layer: dict[str, Any]) -> tuple[str, ...]:
    stand_in = layer["compensator"]
    rank = "" if stand_in["kind"] == "none" else f"rank {stand_in['rank']}"
    return (str(number), *_selector(layer["neurons"]), *_selector(layer["heads"]), rank, str(layer["bytes"]))


def _selector(part: dict[str, Any]) -> tuple[str, str, str, str]:
    """Kind; what it takes; what it goes by; how far it looks ahead."""
    take = by = ""
    if "density" in part:
        take = f"{100 * part['density']:.4g}%"
    elif "threshold" in part:
        take = f"> {part['threshold']:.4g}"
    elif "indices" in part:
        take = str(part["indices"])
    if "rank" in part:
        by = f"rank {part['rank']}" + (", relu" if part["hidden"] == "relu" else "")
    elif "bits" in part:
        by = f"{part['bits']} bits" + (", also as values" if part["values"] == "leading" else "")
    return str(part["kind"]), take, by, str(part.get("lookahead", ""))


def _kv(policy: dict[str, Any]) -> str:
    waiting = f", at most {policy['buffer']} positions late" if policy["kind"] == "recompute" else ""
    return str(policy["kind"]) + waiting


def _vocabulary(part: dict[str, Any]) -> str:
    exact = f", {part['bits']} bits, the best {part['exact']} exact" if part["kind"] == "sketch" else ""
    return str(part["kind"]) + exact
