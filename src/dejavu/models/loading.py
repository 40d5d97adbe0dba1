"""`open_model`: a folder in Hugging Face layout or a GGUF file -> configuration and weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dejavu.errors import ModelFormatError, SourceError, UnsupportedModelError
from dejavu.models.adapter_config import ADAPTER_NAME, Adapter
from dejavu.models.delta import DELTA_NAME, DeltaWeights, check_record
from dejavu.models.families import family_of_gguf, family_of_hf
from dejavu.models.families.options import Options
from dejavu.models.gguf import GgufFile
from dejavu.models.lora import ARRAYS_NAME, LoraWeights
from dejavu.models.safetensors import SafeTensors
from dejavu.models.sources import resolve
from dejavu.models.spec import FETCH_AGAIN
from dejavu.models.weights import MappedWeights, RawTensors, TensorView, Weights
from dejavu.models.writing import family_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dejavu.models.config import ModelConfig
    from dejavu.models.families.family import Layout
    from dejavu.models.progress import Progress

_MAX_JSON = 16 * 1024 * 1024
_COMPARED_ROWS = 1024


@dataclass(frozen=True)
class OpenModel:
    """A model whose options are read and whose weights are mapped, not loaded."""

    config: ModelConfig
    weights: Weights
    path: Path
    format: Literal["safetensors", "gguf"]
    metadata: Mapping[str, object]
    """config.json, or GGUF's metadata."""

    def close(self) -> None:
        """Give the files back."""
        self.weights.close()


def fetch(
    spec: str,
    *,
    offline: bool | None = None,
    revision: str | None = None,
    refresh: bool = False,
    progress: Progress | None = None,
) -> Path:
    """`resolve`, for the model and, if it is a delta or an adapter, for its base, so that `open_model` needs no network.

    Raises:
        ModelFormatError: what says which model is the base is damaged.
        UnsupportedModelError: it is an adapter, or a file, of a kind that dejavu does not know.
        DejavuError: as `resolve`.
    """
    path = resolve(spec, offline=offline, revision=revision, refresh=refresh, progress=progress)
    lineage(path, offline=offline, refresh=refresh, progress=progress)
    return path


def lineage(
    path: Path, *, offline: bool | None = None, refresh: bool = False, progress: Progress | None = None
) -> tuple[Path, ...]:
    """Where the model at `path` lies, and in turn the bases that it is a change of. Raises as `fetch`."""
    found, above = [path], [path.resolve()]
    while (kind := kind_of(found[-1])) == "delta" or kind == "adapter":
        base = _base(found[-1], kind, tuple(above), offline=offline, refresh=refresh, progress=progress)
        found.append(base)
        above.append(base.resolve())
    return tuple(found)


def open_model(path: Path) -> OpenModel:
    """Open a folder with config.json and safetensors, or a ``.gguf`` file; or a delta or a LoRA adapter.

    The base of a delta (`models.delta`) or adapter (`models.lora`) is fetched if it is not on this machine. Tokenizer and
    options are the base's.

    Raises:
        SourceError: nothing is there, or it cannot be read.
        ModelFormatError: the files are damaged, incomplete or contradict each other.
        UnsupportedModelError: an architecture, option or tensor that dejavu does not compute.
    """
    return _open(path, ())


def _open(path: Path, above: tuple[Path, ...]) -> OpenModel:
    """`open_model` of what is the base of the folders `above`."""
    kind = kind_of(path)
    if kind == "folder":
        return _open_folder(path)
    if kind == "gguf":
        return _open_gguf(path)
    base = _open(_base(path, kind, above), (*above, path.resolve()))
    try:
        weights: Weights
        if kind == "delta":
            weights = _delta(base.weights, path)
        else:
            weights = LoraWeights(base.weights, base.config, hf_layout(base), path, _read_adapter(path))
        return dataclasses.replace(base, weights=weights)
    except BaseException:
        base.close()
        raise


def kind_of(path: Path) -> Literal["delta", "adapter", "folder", "gguf"]:
    """What the model at `path` lies in, by the names of its files.

    Raises:
        SourceError: it cannot be looked at, or is a folder without a model.
        UnsupportedModelError: it is a file, and not a ``.gguf`` file.
    """
    try:
        if (path / DELTA_NAME).is_file():
            return "delta"
        configured = (path / "config.json").is_file()
        if (path / ADAPTER_NAME).is_file() and ((path / ARRAYS_NAME).is_file() or not configured):
            return "adapter"
        if configured:
            return "folder"
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise SourceError(
            f"cannot read {path}: {error.strerror or error}",
            fix="check the permissions of the model's folder",
        ) from error
    if is_folder:
        raise SourceError(
            f"{path} holds no config.json",
            fix="give a folder with config.json and model.safetensors, or the path of a .gguf file",
        )
    if exists and path.suffix.lower() != ".gguf":
        raise UnsupportedModelError(
            f"{path} is neither a folder nor a .gguf file",
            fix="give a folder with config.json and model.safetensors, or a .gguf file",
        )
    return "gguf"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most 16 MiB.

    Raises:
        SourceError: the file cannot be read.
        ModelFormatError: it is too large, not JSON or not an object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_JSON + 1)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", fix="check the model's folder") from error
    if len(data) > _MAX_JSON:
        raise ModelFormatError(f"{path}: more than {_MAX_JSON} bytes")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path}: not JSON: {error}", fix=FETCH_AGAIN) from error
    if not isinstance(values, dict):
        raise ModelFormatError(f"{path}: an object is needed")
    return values


def _delta(base: Weights, folder: Path) -> DeltaWeights:
    """`base` and the delta in `folder`; or a share of `base`, if that is a delta."""
    record = read_delta(folder)
    if "share" not in record:
        return DeltaWeights(base, folder, record)
    if not isinstance(base, DeltaWeights):
        raise ModelFormatError(
            f"{folder} is a share of {record['base']}, which is not a delta", fix="name a delta in it"
        )
    return base.part_way(folder, record)


def read_delta(folder: Path) -> dict[str, Any]:
    """What a delta says of itself. Raises as `read_json`."""
    return check_record(folder, read_json(folder / DELTA_NAME))


def _read_adapter(folder: Path) -> Adapter:
    return Adapter.read(read_json(folder / ADAPTER_NAME), str(folder / ADAPTER_NAME))


def _base(
    folder: Path,
    kind: Literal["delta", "adapter"],
    above: tuple[Path, ...],
    *,
    offline: bool | None = None,
    refresh: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Where the model lies of which `folder` is a change, as in turn the models `above` are of it."""
    if kind == "delta":
        name, revision = read_delta(folder)["base"], None
    else:
        adapter = _read_adapter(folder)
        name, revision = adapter.base, adapter.revision
    try:
        path = resolve(name, revision=revision, offline=offline, refresh=refresh, progress=progress)
    except SourceError as error:
        raise SourceError(f"the base of {folder}: {error.args[0]}", fix=error.fix) from error
    if path.resolve() in (*above, folder.resolve()):
        raise ModelFormatError(f"{folder} is its own base", fix="name another base in it")
    return path


def hf_layout(model: OpenModel) -> Layout:
    """Where the model's family has its tensors in Hugging Face's format, whatever format the model itself is in."""
    family = family_of(model.config)
    scales = family.scales_from_hf if model.format == "safetensors" else family.scales_from_gguf
    return family.hf if scales is None else dataclasses.replace(family.hf, scales=scales(model.metadata))


def _open_folder(path: Path) -> OpenModel:
    values = read_json(path / "config.json")
    quantised = values.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UnsupportedModelError(
            f"{path}: the weights are quantised ({method}); supported are float32, float16 and bfloat16",
            fix="use the original model, or its GGUF file",
        )
    if values.get("pruned_heads"):
        raise UnsupportedModelError(f"{path}: pruned_heads is not supported")
    family = family_of_hf(values)
    config = family.config_from_hf(values)
    generation = path / "generation_config.json"
    if generation.is_file():
        more = Options(read_json(generation), where=generation.name).ids("eos_token_id")
        config = dataclasses.replace(
            config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *more)))
        )
    layout = family.hf
    if family.scales_from_hf is not None:
        layout = dataclasses.replace(layout, scales=family.scales_from_hf(values))
    tensors = SafeTensors(path)
    try:
        config, table = _table(config, layout, tensors)
        return OpenModel(config, MappedWeights(tensors, table), path, "safetensors", values)
    except BaseException:
        tensors.close()
        raise


def _open_gguf(path: Path) -> OpenModel:
    file = GgufFile(path)
    try:
        family = family_of_gguf(file.metadata)
        if family.config_from_gguf is None or family.gguf is None:  # registered with both
            raise UnsupportedModelError(f"{family.name} is not supported in GGUF files")
        config = family.config_from_gguf(file.metadata, file.tensors)
        layout = family.gguf
        if family.scales_from_gguf is not None:
            layout = dataclasses.replace(layout, scales=family.scales_from_gguf(file.metadata))
        table = layout.table(config, file.tensors)
        return OpenModel(config, MappedWeights(file.tensors, table), path, "gguf", file.metadata)
    except BaseException:
        file.close()
        raise


def _table(
    config: ModelConfig, layout: Layout, tensors: RawTensors
) -> tuple[ModelConfig, dict[str, TensorView]]:
    """The table, with transformers' rules for a tied head that the file has all the same.

    A head that equals the embedding is dropped, one that differs is used; alone, it serves as the embedding.
    """
    names = set(tensors.names())
    head, embedding = layout.head(names), layout.embedding(names)
    if config.tied_head and head is not None:
        if embedding is None:
            layout = dataclasses.replace(layout, sources={**layout.sources, "embed": layout.sources["head"]})
        elif not _equal(tensors, head, embedding):
            config = dataclasses.replace(config, tied_head=False)
    return config, layout.table(config, tensors)


def _equal(tensors: RawTensors, one: str, other: str) -> bool:
    shape = tensors.shape(one)
    if shape != tensors.shape(other) or len(shape) != 2:
        return False
    for start in range(0, shape[0], _COMPARED_ROWS):
        rows = slice(start, min(start + _COMPARED_ROWS, shape[0]))
        if not np.array_equal(tensors.read_rows(one, rows), tensors.read_rows(other, rows)):
            return False
    return True
