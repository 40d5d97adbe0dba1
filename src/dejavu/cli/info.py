"""dejavu info."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dejavu.cli import options
from dejavu.cli.output import print_fields, print_json, print_table

if TYPE_CHECKING:
    from dejavu.inspection import DeltaFacts, ModelFacts, OwnPlan


def info(
    model: options.Model = options.DEFAULT_MODEL, offline: options.Offline = False, json: options.Json = False
) -> None:
    """Show what a model consists of.

    Its architecture, size by part and codec, cache per token, tokenizer, and its own plans. No weights are read.
    """
    from dejavu.cli.progress import make_progress
    from dejavu.inspection import describe_model
    from dejavu.models.loading import fetch

    path = fetch(model, offline=offline or None, progress=make_progress(quiet=json))
    facts = describe_model(path)
    if json:
        print_json(_record(facts))
        return
    print_fields(_fields(facts))
    print()
    print_table(*_parts_table(facts))


def _fields(facts: ModelFacts) -> dict[str, str]:
    from dejavu.units import human_bytes, human_count

    config, tokenizer = facts.config, facts.tokenizer
    types = ", ".join(f"{kind} ({count})" for kind, count in facts.source_types.items())
    if "error" in tokenizer:
        described = f"none usable: {tokenizer['error']}"
    else:
        ends = f"BOS {tokenizer['bos'] or 'none'}, EOS {tokenizer['eos'] or 'none'}"
        described = f"{tokenizer['vocab_size']} tokens, {ends}"
    return {
        "path": str(facts.path),
        "format": f"{_change(facts.delta)}{facts.format}: {types} tensors",
        "architecture": f"{config.family}, {config.activation}{', gated' if config.gated else ''}, "
        f"{config.norm} norm, {config.position} positions",
        "parameters": human_count(facts.parameters),
        "layers": f"{config.n_layers} of width {config.d_model}, {config.d_ff} neurons",
        "heads": f"{config.n_heads} of width {config.head_dim}, {config.n_kv_heads} for keys and values",
        "vocabulary": f"{config.vocab_size}{', head tied to the embedding' if config.tied_head else ''}",
        "context": f"{config.max_context} tokens",
        "cache per token": ", ".join(
            f"{kind} {human_bytes(size)}" for kind, size in facts.kv_bytes_per_token.items()
        ),
        "tokenizer": described,
        "chat template": "yes" if tokenizer.get("chat_template") else "no",
        **({"plans": "; ".join(map(_plan, facts.plans))} if facts.plans else {}),
    }


def _change(delta: DeltaFacts | None) -> str:
    """What a model is of another one, before the format of that."""
    from dejavu.units import human_bytes

    if delta is None:
        return ""
    if delta.share is None:
        return f"delta of {delta.base}, {human_bytes(delta.bytes)}; with its base "
    return f"{delta.share:g} of the delta {delta.base}; with both bases "


def _plan(plan: OwnPlan) -> str:
    """What to give to --plan, and what that is."""
    said = [plan.name or "(no name)"]
    if plan.density is not None:
        said.append(f"{plan.density:.0%} of the neurons")
    if plan.codec is not None:
        said.append(plan.codec)
    return f"--plan {plan.place} ({', '.join(said)})"


def _parts_table(facts: ModelFacts) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    from dejavu.codecs import CODECS
    from dejavu.units import human_bytes, human_count

    rows = [
        (part, human_count(size.parameters), *(human_bytes(size.bytes[codec]) for codec in CODECS))
        for part, size in facts.parts.items()
    ]
    total = (human_bytes(facts.total_bytes(codec)) for codec in CODECS)
    rows.append(("all", human_count(facts.parameters), *total))
    return ("part", "parameters", *CODECS), rows


def _record(facts: ModelFacts) -> dict[str, Any]:
    return {
        "path": str(facts.path),
        "format": facts.format,
        "source_types": facts.source_types,
        "config": facts.config.to_dict(),
        "parameters": facts.parameters,
        "parts": {
            part: {"parameters": size.parameters, "bytes": size.bytes} for part, size in facts.parts.items()
        },
        "kv_bytes_per_token": facts.kv_bytes_per_token,
        "tokenizer": facts.tokenizer,
        "delta": None if facts.delta is None else dataclasses.asdict(facts.delta),
        "plans": [dataclasses.asdict(plan) for plan in facts.plans],
    }
