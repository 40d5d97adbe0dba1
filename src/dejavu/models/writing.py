"""What the writers of models share: can the place be written, does the format say what the model computes, the tensors."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import CacheError, InputError, NumericsError, UnsupportedModelError
from dejavu.models.families import FAMILIES
from dejavu.models.mapped import from_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.models.config import ModelConfig
    from dejavu.models.families import Family
    from dejavu.models.weights import TensorView

    Read = Callable[[str], NDArray[np.float32]]


def family_of(config: ModelConfig) -> Family:
    """The family that `config` belongs to."""
    return next(family for family in FAMILIES if family.name == config.family)


def check_said(what: str, config: ModelConfig, read_back: ModelConfig) -> None:
    """Raise `UnsupportedModelError` unless the options of a file about to be written mean `config`.

    Families may differ (one format calls Llama what is Mistral in another), and a context is only a limit unless positions
    are learned.
    """
    wanted, found = _fields(config), _fields(read_back)
    lost = sorted(name for name in wanted if wanted[name] != found[name])
    if lost:
        values = ", ".join(f"{name} {str(wanted[name])[:60]}" for name in lost)
        raise UnsupportedModelError(
            f"{what} cannot hold this {config.family} model: its options cannot say {values}"
        )


def _fields(config: ModelConfig) -> dict[str, object]:
    """With defaults resolved, numbers as float32."""
    values: dict[str, object] = dataclasses.asdict(config) | {
        "attn_scale": config.scale,
        "rotary_dim": config.rope_dim,
        "biases": sorted(config.biases),
    }
    for name in ("family", *(["max_context"] if config.position != "learned" else [])):
        del values[name]
    return {name: _rounded(value) for name, value in values.items()}


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def assemble(parts: Mapping[str, TensorView], shape: tuple[int, ...], read: Read) -> NDArray[np.float32]:
    """One tensor of a file, of `shape`, from the model's tensors that lie in it (`Layout.sources_of`).

    Raises `NumericsError` for NaN and infinity.
    """
    whole = np.empty(shape, np.float32)
    for name, view in parts.items():
        values = read(name)
        if not np.isfinite(values).all():
            raise NumericsError(f"{name} holds NaN or infinity")
        whole[slice(None) if view.rows is None else view.rows] = (values - np.float32(view.add)) / np.float32(
            view.scale
        )
    return whole


def as_floats(values: NDArray[np.float32], dtype: str, name: str) -> NDArray[np.generic]:
    """`values` of tensor `name` as F32, F16 or BF16. Raises `NumericsError` for a value beyond F16's range."""
    stored = from_float32(values, dtype)
    if dtype == "F16" and np.isinf(stored).any():
        raise NumericsError(f"{name} holds values beyond float16's range", fix="use bf16 or f32")
    return stored


def whole_shape(parts: Mapping[str, TensorView], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of the tensor that `assemble` makes."""
    first = next(iter(parts))
    return (sum(shapes[name][0] for name in parts), *shapes[first][1:])


def check_folder(folder: Path) -> None:
    """Whether results may be written into `folder`, which need not exist yet: before the work begins. Leaves nothing there.

    Raises:
        InputError: a file lies there.
        CacheError: it cannot be made, or nothing can be written into it.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if existing == folder and not folder.is_dir():
            raise InputError(f"{folder} is not a folder", fix="give a folder with -o")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise CacheError(
            f"cannot write {folder}: {error.strerror or error}", fix="give another folder with -o"
        ) from error


@contextlib.contextmanager
def output_errors() -> Iterator[None]:
    """Give errors of the disk the fix that fits a place which the user named."""
    try:
        yield
    except CacheError as error:
        raise CacheError(error.args[0], fix="free some space, or give another place") from error
