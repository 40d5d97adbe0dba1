"""`convert`: a model, whatever it lies in, as a folder in Hugging Face layout or as a GGUF file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from dejavu.codecs import encode
from dejavu.environment import folder_bytes
from dejavu.errors import InputError
from dejavu.gguf_tokenizer_writer import tokenizer_metadata
from dejavu.models.delta import write_delta, write_share
from dejavu.models.folder_files import TEXT_FILES, copy_texts
from dejavu.models.folder_writer import FLOAT_CODECS, write_folder
from dejavu.models.gguf_writer import GGUF_CODECS, write_gguf
from dejavu.models.loading import open_model
from dejavu.nested import estimate
from dejavu.plan import Sketch
from dejavu.plan.choice import own_plans
from dejavu.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from dejavu.models.folder_writer import FloatCodec
    from dejavu.models.gguf_header import MetadataValue
    from dejavu.models.loading import OpenModel
    from dejavu.models.progress import Progress
    from dejavu.models.weights import Weights
    from dejavu.plan import AccessPlan

Format = Literal["safetensors", "gguf", "delta"]


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote."""

    path: Path
    format: Format
    codec: str
    bytes: int
    """Size of the file, or of the folder's files."""


def convert(
    source: Path,
    target: Path,
    *,
    format: Format | None = None,
    codec: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write the model at `source` to `target`, whole or not at all, with its tokenizer and chat template.

    A folder gets the model's own plans, too. Their evidence gains ``measured_on``, the fingerprint of the weights that the
    figures are of: the new ones are nearly the same.

    Args:
        source: what `dejavu.models.sources.resolve` returned.
        target: a folder (safetensors) or a file (gguf).
        format: default: gguf where `target` ends so, else safetensors.
        codec: of the weights; safetensors: f32 (default), bf16, f16; gguf: these, q8_0 (default), q4_0, q4_1.
        force: replace a model that is there.
        progress: told of the bytes written.

    Raises:
        InputError: an unknown codec, a name that says another format, or something lies at `target`.
        UnsupportedModelError: the format cannot say what the model or its tokenizer computes.
        ModelFormatError, NumericsError, PlanError: the model, or a plan of it, is damaged.
        CacheError: the disk is full, or the place cannot be written.
    """
    chosen: Format = format or ("gguf" if _named_gguf(target) else "safetensors")
    if chosen == "delta":
        raise InputError("a delta needs a base", fix="give --base MODEL")
    _check_name(target, chosen)
    codecs = tuple(FLOAT_CODECS) if chosen == "safetensors" else GGUF_CODECS
    codec = codec or ("f32" if chosen == "safetensors" else "q8_0")
    if codec not in codecs:
        raise InputError(f"codec {codec!r} is unknown to {chosen}; there are: {', '.join(codecs)}")
    if target.exists() and target.resolve() == source.resolve():
        raise InputError(f"{target} is the model itself", fix="give another place")
    model = open_model(source)
    try:
        if chosen == "safetensors":
            write_folder(
                target,
                model.config,
                model.weights.read,
                codec=cast("FloatCodec", codec),
                add_files=partial(_add_files, model, own_plans(source)),
                force=force,
                progress=progress,
            )
        else:
            write_gguf(
                target,
                model.config,
                model.weights.read,
                _metadata(model),
                codec=codec,
                force=force,
                progress=progress,
            )
    finally:
        model.close()
    return Converted(target, chosen, codec, _size(target))


def convert_to_delta(
    source: Path, target: Path, base: str, base_path: Path, *, progress: Progress | None = None
) -> Converted:
    """Write what makes the model at `source` of its base, in under two bits per weight, and its plans (as `convert` does).

    See `dejavu.models.delta`.

    Where all plans of the model read the leading bits of gate and up and no others, the delta aims at the middle of what
    these leave open: what it then misses seldom leads to other bits.

    Args:
        source: the adapted model, as `resolve` returned it.
        target: the folder to write.
        base: name of the base; whoever opens the delta needs it to be that name of the same file.
        base_path: what `resolve` returned for it.
        progress: told of the weights compared.

    Raises:
        InputError: something lies at `target`, its name says another format, the models are the same, or they differ in
            more than the layers' matrices.
        DejavuError: as `convert`.
    """
    _check_name(target, "delta")
    plans = own_plans(source)
    original, adapted = open_model(base_path), open_model(source)
    try:
        if original.weights.fingerprint == adapted.weights.fingerprint:
            raise InputError(
                f"{source} is the base itself, and a delta of it holds nothing",
                fix="give the adapted model, and with --base what it was adapted from",
            )
        bits = _leading_alone(plans.values())
        read = partial(_middle, adapted.weights, bits) if bits else None
        write_delta(
            target,
            original.weights,
            adapted.weights,
            name=base,
            read=read,
            add_files=partial(_add_plans, plans),
            progress=progress,
        )
    finally:
        original.close()
        adapted.close()
    return Converted(target, "delta", "ternary", _size(target))


def convert_to_share(source: Path, target: Path, share: float, name: str) -> Converted:
    """Write the model that goes only a share of the way that a delta goes; see `dejavu.models.delta`.

    Plans do not come along: their thresholds are for other weights.

    Args:
        source: the delta, as `resolve` returned it.
        target: the folder to write.
        share: of the way, within (0, 1].
        name: of the delta; whoever opens the share needs it to be that name of the same delta.

    Raises:
        InputError: something lies at `target`, its name says another format, the model is no delta, or no such share
            exists.
        DejavuError: as `convert`.
    """
    _check_name(target, "delta")
    delta = open_model(source)
    try:
        write_share(target, delta.weights, share, name=name)
    finally:
        delta.close()
    return Converted(target, "delta", "ternary", _size(target))


def _leading_alone(plans: Collection[AccessPlan]) -> int:
    """How many leading bits of int8 gate and up are all that a model's plans read; 0: it has none, or they read more."""
    neurons = {layer.neurons for plan in plans for layer in plan.layers}
    found = {n.bits if isinstance(n, Sketch) and n.values == "leading" else 0 for n in neurons}
    alone = len(found) == 1 and all(plan.evidence.get("codec") == "int8" for plan in plans)
    return found.pop() if alone else 0


def _middle(weights: Weights, bits: int, name: str) -> NDArray[np.float32]:
    """A tensor of the model, gate and up as their leading bits say."""
    values = weights.read(name)
    if name.startswith("layers.") and name.endswith((".gate.weight", ".up.weight")):
        return estimate(encode("int8", values), bits)
    return values


def _named_gguf(target: Path) -> bool:
    return target.suffix.lower() == ".gguf"


def _check_name(target: Path, format: Format) -> None:
    """Raise `InputError` for a folder that would be called like a GGUF file."""
    if format != "gguf" and _named_gguf(target):
        raise InputError(
            f"{target} is the name of a GGUF file, and {format} is a folder",
            fix="give a folder with -o",
        )


def _size(target: Path) -> int:
    return folder_bytes(target) if target.is_dir() else target.stat().st_size


def add_text_files(model: OpenModel, folder: Path) -> None:
    """Write the tokenizer of a model and what else belongs to it, but its configuration, to a folder."""
    if model.format == "gguf":
        Tokenizer.from_model(model).save(folder)
    else:
        copy_texts(model.path, folder, TEXT_FILES)


def _add_files(model: OpenModel, plans: Mapping[Path, AccessPlan], folder: Path) -> None:
    add_text_files(model, folder)
    _add_plans(plans, folder)


def _add_plans(plans: Mapping[Path, AccessPlan], folder: Path) -> None:
    """Plans of the model that was converted, by their places, for the weights in `folder`."""
    if not plans:
        return
    written = open_model(folder)
    try:
        for place, plan in plans.items():
            evidence = {"measured_on": plan.model, **plan.evidence}
            moved = dataclasses.replace(plan, model=written.weights.fingerprint, evidence=evidence)
            moved.save(folder / place)
    finally:
        written.close()


def _metadata(model: OpenModel) -> dict[str, MetadataValue]:
    """Entries of a GGUF file that are not the architecture's."""
    if model.format == "gguf":
        kept = (
            "tokenizer.",
            "general.name",
            "general.license",
            "general.author",
            "general.url",
            "general.source",
        )
        found = {key: value for key, value in model.metadata.items() if key.startswith(kept)}
        return cast("dict[str, MetadataValue]", found)
    config = model.config
    metadata = tokenizer_metadata(Tokenizer.from_model(model), config.vocab_size, config.eos_token_ids)
    return {"general.name": model.path.resolve().name, **metadata}
