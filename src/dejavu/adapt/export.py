"""What is told of the finished model in its folder: a model card, a picture of its curve, and all figures."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from dejavu.models.spec import LocalSpec, parse_spec
from dejavu.plan.choice import OWN
from dejavu.report import Axis, Series, line_chart, standalone_svg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dejavu.models.loading import OpenModel

ADAPTATION_NAME = "adaptation.json"
"""All figures of a run."""


def write_card(folder: Path, base: str, opened: OpenModel, evidence: Mapping[str, Any]) -> None:
    """Write README.md, the curve as a picture, and all figures as adaptation.json."""
    (folder / ADAPTATION_NAME).write_text(json.dumps(evidence, indent=1), encoding="utf-8")
    (folder / "curve.svg").write_text(curve_svg(evidence["curve"]), encoding="utf-8")
    (folder / "README.md").write_text(_card(base, opened, evidence), encoding="utf-8")


def curve_svg(curve: Sequence[Mapping[str, float]]) -> str:
    """Held-out perplexity ratio against tokens seen, a standalone SVG."""
    after = curve[1:] or curve
    series = [
        Series("masked, held-out", [p["tokens"] for p in after], [p["ratio"] for p in after]),
    ]
    chart = line_chart(
        "Adaptation",
        series,
        x=Axis("tokens seen"),
        y=Axis("perplexity ratio to the original", log=True),
        mark=curve[0]["ratio"],
        description=f"Perplexity ratio against tokens; the dotted line is the ratio before, {curve[0]['ratio']:.3f}",
    )
    return standalone_svg(chart)


def base_name(model: str) -> str:
    """How the card names the base: where it was fetched from, or the name of its file or folder."""
    spec = parse_spec(model)
    return spec.path.resolve().name if isinstance(spec, LocalSpec) else str(spec)


def base_license(opened: OpenModel) -> str:
    """As the model's own file or card says it; "unknown" where neither does."""
    found = opened.metadata.get("general.license") or opened.metadata.get("license")
    card = opened.path / "README.md"
    if not found and opened.path.is_dir() and card.is_file():
        line = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8", errors="replace"), re.M)
        found = line[1] if line else None
    return str(found) if found else "unknown"


def _card(base: str, opened: OpenModel, evidence: Mapping[str, Any]) -> str:
    license_ = base_license(opened)
    curve, options, native = evidence["curve"], evidence["options"], evidence["native"]
    rows = [
        f"| {point['tokens']:,} | {point['seconds'] / 60:.0f} | {point['density']:.3f} | {point['ratio']:.4f} |"
        for point in _some(curve)
    ]
    stages, regression, adapter = evidence["stages"], evidence["regression"], evidence["adapter"]
    if len(stages) > 1:
        before = f"With the weights that were adapted to density {stages[-2]:.3g} the same masks cost"
    elif regression is not None:
        before = "With the new activation and no training it was"
    else:
        before = "Before the adaptation the same masks cost"
    recipe = {
        **({} if regression is None else {"first": _regression(regression, options)}),
        **({} if evidence["teacher"] is None else {"teacher": evidence["teacher"]}),
        "loss": options["loss"],
        "masks": evidence["selectors"],
        "mean density": f"{evidence['density']:.3f}"
        + (f", the last of {' > '.join(f'{density:.3g}' for density in stages)}" if len(stages) > 1 else ""),
        "learning rate": f"{options['learning_rate']:g} (attention {evidence['attention_share']:g} of it; embedding, "
        "head and norms frozen), AdamW, warm-up and cosine",
        **(
            {} if adapter is None else {"method": f"LoRA of rank {adapter['rank']}, alpha {adapter['alpha']}"}
        ),
        "tokens": f"{evidence['tokens']:,} ({evidence['turns']:.2f} times through the text)",
        "time": f"{evidence['seconds'] / 3600:.2f} hours, {evidence['tokens_per_s']:.0f} tokens/s",
        "text": f"{evidence['documents']:,} documents",
        "command": f"`{evidence['command']}`",
    }
    original = opened.metadata.get("general.name")
    named = f"{base} ({original})" if original else base
    teacher = evidence["teacher"]
    distillation = (
        "self-distillation so that the model predicts as before"
        if teacher is None
        else f"distillation so that the model predicts as {teacher} does"
    )
    note = (
        "The license of the base could not be found in its files; see where it came from."
        if license_ == "unknown"
        else f"The base is licensed {license_}, and so are these weights."
    )
    return "\n".join(
        [
            "---",
            f"license: {license_}",
            f"base_model: {base}",
            *([] if adapter is None else ["library_name: peft"]),
            "tags: [dejavu, contextual-sparsity]",
            "---",
            "",
            f"# {base}, adapted to sparse MLPs",
            "",
            f"The weights of {named}, changed by a short {distillation} while "
            f"each token runs only {100 * evidence['density']:.0f}% of the MLP neurons. {note}",
            "",
            "```bash",
            f'dejavu generate "Hello" -m FOLDER --codec {options["codec"]} --plan FOLDER/{OWN}',
            "```",
            "",
            *(
                []
                if adapter is None
                else [
                    "This is a LoRA adapter; it is opened beside its base, which adapter_config.json names.",
                    "",
                ]
            ),
            "Without the plan all neurons run, which is not what the weights were trained for."
            if regression is None
            else "The activation makes exact zeros; by the plan they are left out, without it they are computed.",
            "",
            "## Quality",
            "",
            f"On {native['tokens']:,} held-out tokens the native engine with the plan, weights in {options['codec']}, has "
            f"{native['ppl_ratio']:.4f} times the perplexity of the dense original in {native['base_codec']} at a "
            f"density of {native['density']:.3f}. {before} {curve[0]['ratio']:.3f}.",
            "",
            "![held-out perplexity ratio against tokens](curve.svg)",
            "",
            "| tokens seen | minutes | density | ppl ratio |",
            "|---|---|---|---|",
            *rows,
            "",
            *_gentler(evidence["gentler"]),
            "## Recipe",
            "",
            *(f"- {name}: {value}" for name, value in recipe.items()),
            "",
            "All figures are in `adaptation.json`.",
            "",
        ]
    )


def _regression(point: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    return (
        f"--activation {options['activation']}: each MLP by itself learned to give what the original's gives, on "
        f"{point['tokens']:,} tokens; the perplexity ratio was {point['ratio']:.3f} then, at density {point['density']:.3f}"
    )


def _gentler(plans: Sequence[Mapping[str, Any]]) -> list[str]:
    if not plans:
        return []
    return [
        "## Gentler plans for the same weights",
        "",
        "| --plan | density | MLP bytes read | ppl ratio |",
        "|---|---|---|---|",
        *(
            f"| {p['plan']} | {p['density']:.3f} | {100 * p['touched_share']:.1f}% | {p['ppl_ratio']:.4f} |"
            for p in plans
        ),
        "",
    ]


def _some(curve: Sequence[Any], most: int = 12) -> list[Any]:
    """First, last, and evenly spread points between."""
    if len(curve) <= most:
        return list(curve)
    return [curve[round(i * (len(curve) - 1) / (most - 1))] for i in range(most)]
