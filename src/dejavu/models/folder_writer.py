"""Writing a model as a folder in Hugging Face layout: config.json, model.safetensors and what the caller adds."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from dejavu.errors import CacheError, InputError, NumericsError, UnsupportedModelError
from dejavu.models.families import FAMILIES
from dejavu.models.mapped import from_float32
from dejavu.models.progress import NoProgress
from dejavu.models.safetensors import SINGLE_NAME
from dejavu.models.safetensors_writer import write_header
from dejavu.models.store import staged_folder
from dejavu.models.tensors import tensor_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from dejavu.models.config import ModelConfig
    from dejavu.models.families import Family
    from dejavu.models.progress import Progress
    from dejavu.models.weights import TensorView

    Read = Callable[[str], NDArray[np.float32]]

FloatCodec = Literal["f32", "bf16", "f16"]
FLOAT_CODECS: dict[FloatCodec, tuple[str, str]] = {
    "f32": ("F32", "float32"),
    "bf16": ("BF16", "bfloat16"),
    "f16": ("F16", "float16"),
}
"""What the weights of a folder can be stored in -> the name in safetensors, the name in config.json."""


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
        InputError: `target` exists and `force` is not given, or it is not a model's folder.
        UnsupportedModelError: config.json cannot say what the model computes.
        NumericsError: a tensor holds NaN, infinity or, with f16, a value beyond 65504.
        CacheError: the disk is full, or the folder cannot be written.
    """
    family = family_of(config)
    values = config_json(family, config) | {"torch_dtype": FLOAT_CODECS[codec][1]}
    check_target(target, force=force)
    try:
        with staged_folder(target) as folder:
            (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            with (folder / SINGLE_NAME).open("wb") as stream:
                _write_tensors(stream, family, config, read, codec, progress or NoProgress())
            if add_files is not None:
                add_files(folder)
    except CacheError as error:
        raise CacheError(error.args[0], fix="free some space, or give another folder") from error


def check_target(target: Path, *, force: bool) -> None:
    """Raise `InputError` where a model cannot be written to `target`; `force` allows to replace one."""
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise InputError(f"{target} exists", fix="give another place, or --force to replace it")
    if not target.is_dir() or (any(target.iterdir()) and not (target / "config.json").is_file()):
        raise InputError(f"{target} is not a model's folder, and stays as it is", fix="give another place")


def family_of(config: ModelConfig) -> Family:
    """The family that `config` belongs to."""
    return next(family for family in FAMILIES if family.name == config.family)


def config_json(family: Family, config: ModelConfig) -> dict[str, object]:
    """Options that are read back as `config`. Raises `UnsupportedModelError` where there are none."""
    values = family.config_to_hf(config)
    found, wanted = (_comparable(c) for c in (family.config_from_hf(values), config))
    lost = sorted(name for name in wanted if wanted[name] != found[name])
    if lost:
        raise UnsupportedModelError(
            f"a {config.family} folder cannot hold this model: its config.json cannot say {', '.join(lost)} "
            f"({', '.join(str(wanted[name])[:60] for name in lost)})"
        )
    return values


def _comparable(config: ModelConfig) -> dict[str, object]:
    """Fields of `config`, with defaults resolved; a context is only a limit unless positions are learned."""
    values = dataclasses.asdict(config) | {"attn_scale": config.scale, "rotary_dim": config.rope_dim}
    values["biases"] = sorted(config.biases)
    if config.position != "learned":
        del values["max_context"]
    return values


def _write_tensors(
    stream: BinaryIO, family: Family, config: ModelConfig, read: Read, codec: FloatCodec, progress: Progress
) -> None:
    dtype = FLOAT_CODECS[codec][0]
    shapes = tensor_shapes(config)
    sources = family.hf.sources_of(config)
    entries = {
        source: (dtype, (sum(shapes[name][0] for name in parts), *shapes[next(iter(parts))][1:]))
        for source, parts in sources.items()
    }
    write_header(stream, entries)
    size = {"F32": 4, "F16": 2, "BF16": 2}[dtype]
    progress.start("writing weights", size * sum(math.prod(shape) for _, shape in entries.values()))
    try:
        for source, parts in sources.items():
            stored = from_float32(assemble(parts, entries[source][1], read), dtype)
            if dtype == "F16" and np.isinf(stored).any():
                raise NumericsError(f"{source} holds values beyond float16's range", fix="use bf16 or f32")
            stream.write(stored.tobytes())
            progress.advance(stored.nbytes)
    finally:
        progress.finish()


def assemble(parts: Mapping[str, TensorView], shape: tuple[int, ...], read: Read) -> NDArray[np.float32]:
    """One tensor of a file, of `shape`, from the model's tensors that lie in it (`Layout.sources_of`)."""
    whole = np.empty(shape, np.float32)
    for name, view in parts.items():
        values = read(name)
        if not np.isfinite(values).all():
            raise NumericsError(f"{name} holds NaN or infinity")
        whole[slice(None) if view.rows is None else view.rows] = values - np.float32(view.add)
    return whole
