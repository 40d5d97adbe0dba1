"""Writing a model as a folder in Hugging Face layout: config.json, model.safetensors and what the caller adds."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import TYPE_CHECKING, Literal

from dejavu.errors import InputError
from dejavu.models.folder_files import is_written
from dejavu.models.mapped import FLOAT_BYTES
from dejavu.models.progress import NoProgress
from dejavu.models.safetensors import SINGLE_NAME
from dejavu.models.safetensors_writer import write_header
from dejavu.models.staged_folder import staged_folder
from dejavu.models.tensors import tensor_shapes
from dejavu.models.writing import as_floats, assemble, check_said, family_of, output_errors, whole_shape

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from dejavu.models.config import ModelConfig
    from dejavu.models.families import Family
    from dejavu.models.progress import Progress
    from dejavu.models.writing import Read

FloatCodec = Literal["f32", "bf16", "f16"]
FLOAT_CODECS: dict[FloatCodec, tuple[str, str]] = {
    "f32": ("F32", "float32"),
    "bf16": ("BF16", "bfloat16"),
    "f16": ("F16", "float16"),
}
"""What the weights of a folder can be stored in -> the name in safetensors, the name in config.json."""

_SHOWN = 3  # names in an error message


def write_folder(
    target: Path,
    config: ModelConfig,
    read: Read,
    *,
    codec: FloatCodec = "f32",
    add_files: Callable[[Path], None] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a model to the folder `target`, whole or not at all; one tensor at a time is in memory.

    Args:
        target: the folder to make.
        config: the model, without second copies of neurons.
        read: dejavu's name of a tensor (`tensors.tensor_shapes`) -> its float32 values; each is read once.
        codec: what weights are stored in.
        add_files: writes further files into the folder that it is given: `Tokenizer.save`, a model card.
        force: replace a model that is there.
        progress: told of the bytes written.

    Raises:
        InputError: `target` exists and `force` is not given, or it is not a model's folder, or holds other things too.
        UnsupportedModelError: config.json cannot say what the model computes.
        NumericsError: a tensor holds NaN, infinity or, with f16, a value beyond 65504.
        CacheError: the disk is full, or the folder cannot be written.
    """
    values = config_json(config) | {"torch_dtype": FLOAT_CODECS[codec][1]}
    replace = partial(_may_replace, force=force)
    if target.exists() or target.is_symlink():
        replace(target)
    with output_errors(), staged_folder(target, replace=replace) as folder:
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        with (folder / SINGLE_NAME).open("wb") as stream:
            _write_tensors(stream, family_of(config), config, read, codec, progress or NoProgress())
        if add_files is not None:
            add_files(folder)


def config_json(config: ModelConfig) -> dict[str, object]:
    """Options that are read back as `config`. Raises `UnsupportedModelError` where there are none."""
    family = family_of(config)
    values = family.config_to_hf(config)
    check_said("a folder", config, family.config_from_hf(values))
    return values


def _may_replace(target: Path, *, force: bool) -> bool:
    """True; raises `InputError` for what stays as it is."""
    if not force:
        raise InputError(f"{target} exists", fix="give another place, or --force to replace it")
    names = sorted(path.name for path in target.iterdir()) if target.is_dir() else None
    if names is None or (names and "config.json" not in names):
        raise InputError(f"{target} is not a model's folder, and stays as it is", fix="give another place")
    if others := [name for name in names if not is_written(name)]:
        shown = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN} more" if others[_SHOWN:] else "")
        raise InputError(
            f"{target} holds more than a model ({shown}), and stays as it is",
            fix="give another place, or move that elsewhere",
        )
    return True


def _write_tensors(
    stream: BinaryIO, family: Family, config: ModelConfig, read: Read, codec: FloatCodec, progress: Progress
) -> None:
    dtype = FLOAT_CODECS[codec][0]
    shapes = tensor_shapes(config)
    sources = family.hf.sources_of(config)
    entries = {source: (dtype, whole_shape(parts, shapes)) for source, parts in sources.items()}
    write_header(stream, entries)
    progress.start(
        "writing weights", FLOAT_BYTES[dtype] * sum(math.prod(shape) for _, shape in entries.values())
    )
    try:
        for source, parts in sources.items():
            stored = as_floats(assemble(parts, entries[source][1], read), dtype, source)
            stream.write(stored.tobytes())
            progress.advance(stored.nbytes)
    finally:
        progress.finish()
