"""dejavu convert."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dejavu.cli import options
from dejavu.cli.output import print_json

if TYPE_CHECKING:
    from dejavu.conversion import Converted


class FormatName(str, Enum):
    """Values of --format."""

    safetensors = "safetensors"
    gguf = "gguf"
    delta = "delta"


class StoredCodec(str, Enum):
    """Values of --codec."""

    f32 = "f32"
    bf16 = "bf16"
    f16 = "f16"
    q8_0 = "q8_0"
    q4_0 = "q4_0"
    q4_1 = "q4_1"


def convert(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder, or the .gguf file, to write.")],
    format: Annotated[
        FormatName | None,
        typer.Option(help="safetensors: a folder in Hugging Face layout. Default: gguf if OUT ends so."),
    ] = None,
    codec: Annotated[
        StoredCodec | None,
        typer.Option(
            help="Of the weights. safetensors: f32 (default), bf16, f16; gguf: also q8_0 (default), q4_0, q4_1."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="With --format delta: the model that MODEL was adapted from; by a name that others know."
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="Of MODEL, a delta: the model that goes only this share of the way from its base, such as 0.5."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that lies there.")] = False,
    offline: options.Offline = False,
    json: options.Json = False,
) -> None:
    """Write a model as a folder in Hugging Face layout, or as a GGUF file, with tokenizer and chat template.

    Or, with --format delta, what makes an adapted model of its base, in under two bits per weight. A folder gets the
    model's plans, too. Or, with --share, a few bytes that name a delta and how far to go.
    """
    from dejavu.cli.progress import make_progress
    from dejavu.conversion import convert as run
    from dejavu.conversion import convert_to_delta, convert_to_share
    from dejavu.errors import InputError
    from dejavu.models.loading import fetch
    from dejavu.models.spec import ALIASES

    progress = make_progress(quiet=json)
    if share is not None and (format is not None or base is not None):
        raise InputError(
            "--share writes the name of MODEL and a number, in no other format",
            fix="leave --format and --base away",
        )
    if (format is FormatName.delta) != (base is not None):
        raise InputError("--format delta and --base MODEL belong together")
    if (base is not None or share is not None) and (codec is not None or force):
        raise InputError("a delta has one codec, and replaces nothing", fix="leave --codec and --force away")
    path = fetch(model, offline=offline or None, progress=progress)
    if share is not None:
        name = str(path.resolve()) if Path(model).exists() and model not in ALIASES else model
        _print(model, convert_to_share(path, out, share, name), json)
        return
    if base is not None:
        origin = fetch(base, offline=offline or None, progress=progress)
        delta = convert_to_delta(path, out, base, origin, progress=progress)
        _print(model, delta, json)
        return
    result = run(
        path,
        out,
        format=None if format is None else format.value,
        codec=None if codec is None else codec.value,
        force=force,
        progress=progress,
    )
    _print(model, result, json)


def _print(model: str, result: Converted, json: bool) -> None:
    from dejavu.units import human_bytes

    if json:
        print_json(
            {
                "model": model,
                "path": str(result.path),
                "format": result.format,
                "codec": result.codec,
                "bytes": result.bytes,
            }
        )
    else:
        print(f"{result.path}: {result.format}, {result.codec}, {human_bytes(result.bytes)}")
