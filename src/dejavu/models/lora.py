"""LoRA adapters (Hu et al. 2022) in the form of PEFT: a model as its base and updates of low rank.

A folder with ``adapter_config.json``, which names the base, and ``adapter_model.safetensors``. A linear that is adapted is

    base + s B A,   A [r, in], B [out, r], s = alpha / r (rank-stabilised: alpha / sqrt(r));

everything else is the base's. Where a family keeps q, k and v in one matrix, they share one update.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.errors import InputError, ModelFormatError, NumericsError, UnsupportedModelError
from dejavu.models.adapter_config import ADAPTER_NAME, Adapter
from dejavu.models.changed import ChangedWeights
from dejavu.models.mapped import FLOAT_BYTES
from dejavu.models.safetensors import SafeTensors
from dejavu.models.safetensors_writer import write_safetensors
from dejavu.models.spec import FETCH_AGAIN
from dejavu.models.staged_folder import staged_folder
from dejavu.models.tensors import tensor_shapes
from dejavu.models.weights import MappedWeights, TensorView
from dejavu.models.writing import output_errors, whole_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.models.config import ModelConfig
    from dejavu.models.families import Layout
    from dejavu.models.weights import Weights

    Factors = tuple[NDArray[np.float32], NDArray[np.float32]]
    """A and B."""
    Linears = dict[str, dict[str, TensorView]]

ARRAYS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"

_TENSOR = "base_model.model.{module}.lora_{factor}.weight"
_LINEAR = re.compile(r"layers\.\d+\.(q|k|v|o|gate|up|down)\.weight")
_SHOWN = 3  # names in an error message
_MEND = f"name the right base in {ADAPTER_NAME}, or {FETCH_AGAIN}"


class LoraWeights(ChangedWeights):
    """`Weights` of a base and the adapter in a folder.

    Args:
        base: the original; `close` closes it.
        config: of the base.
        layout: of the base's family in Hugging Face's format, which the adapter's names are of.
        folder: where the adapter lies.
        adapter: its options.

    Raises:
        SourceError, ModelFormatError: the tensors are missing, damaged or pickled, or do not fit the base.
        UnsupportedModelError: the adapter changes other things than linears of layers.
    """

    def __init__(
        self, base: Weights, config: ModelConfig, layout: Layout, folder: Path, adapter: Adapter
    ) -> None:
        path = folder / ARRAYS_NAME
        if not path.exists() and (folder / PICKLE_NAME).exists():
            raise ModelFormatError(
                f"{folder} holds {PICKLE_NAME} but no {ARRAYS_NAME}; pickled weights are never loaded",
                fix="convert it: PeftModel.from_pretrained(...).save_pretrained(..., safe_serialization=True)",
            )
        self._folder = folder
        arrays = SafeTensors(path)
        try:
            linears = _adapted(arrays, config, layout, adapter, path)
            _check_shapes(arrays, linears, config, adapter, path)
            scales = {module: adapter.scale_of(module) for module in linears}
            self._factors = MappedWeights(arrays, _views(linears, scales))
        except BaseException:
            arrays.close()
            raise
        super().__init__(base, self._factors)
        both = f"{base.fingerprint}+{arrays.fingerprint}*{sorted(scales.items())}"
        self.fingerprint = hashlib.sha256(both.encode()).hexdigest()
        """Of both, and of the scales."""

    def changes(self, name: str) -> bool:
        """Those that the adapter has factors of."""
        return _a(name) in self._factors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """See `Weights.read`. Raises `NumericsError` where the adapter holds NaN or infinity."""
        values = self._base.read(name, start, stop)
        if not self.changes(name):
            return values
        with np.errstate(all="ignore"):
            return self._checked(
                name, values + self._factors.read(_b(name), start, stop) @ self._factors.read(_a(name))
            )

    def read_columns(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """See `Weights.read_columns`, and `read`."""
        values = self._base.read_columns(name, start, stop)
        if not self.changes(name):
            return values
        with np.errstate(all="ignore"):
            a = self._factors.read_columns(_a(name), start, stop)
            return self._checked(name, values + self._factors.read(_b(name)) @ a)

    def _checked(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(values).all():
            raise NumericsError(f"{name} with the adapter in {self._folder} holds NaN or infinity", fix=_MEND)
        return values


def write_adapter(
    target: Path,
    config: ModelConfig,
    layout: Layout,
    factors: Mapping[str, Factors],
    adapter: Adapter,
    *,
    add_files: Callable[[Path], None] | None = None,
) -> None:
    """Write an adapter to the folder `target`, whole or not at all.

    Args:
        target: the folder to make.
        config: of the base.
        layout: as for `LoraWeights`.
        factors: dejavu's name of a weight -> A [r, in] and B [out, r]; for the same linears in all layers.
        adapter: base, rank and alpha of the factors.
        add_files: writes further files into the folder that it is given.

    Raises:
        InputError: `target` exists.
        NumericsError: a factor holds NaN, infinity or a value beyond float16's range.
        CacheError: the disk is full, or the folder cannot be written.
    """
    if target.exists():
        raise InputError(f"{target} exists", fix="give another place")
    arrays: dict[str, NDArray[Any]] = {}
    counts: dict[str, int] = {}  # of updates that lie in a module, by the end of its name
    for module, parts in _linears(config, layout, layout.prefixes[0]).items():
        known = {name: view for name, view in parts.items() if name in factors}
        if not known:
            continue
        counts[module.rpartition(".")[2]] = len(known)
        rows = whole_shape(parts, tensor_shapes(config))[0]
        for factor, values in zip("AB", _side_by_side(known, factors, rows), strict=True):
            with np.errstate(over="ignore"):
                stored = values.astype(np.float16)
            if not np.isfinite(stored).all():
                raise NumericsError(f"the update of {module} holds NaN or values beyond float16's range")
            arrays[_TENSOR.format(module=module, factor=factor)] = stored
    fused = {end: count for end, count in counts.items() if count > 1}
    adapter = dataclasses.replace(
        adapter,
        ranks={end: count * adapter.rank for end, count in fused.items()},
        alphas={end: count * adapter.alpha for end, count in fused.items()},
        modules=list(counts),
    )
    with output_errors(), staged_folder(target) as folder:
        text = json.dumps(adapter.options(), indent=2) + "\n"
        (folder / ADAPTER_NAME).write_text(text, encoding="utf-8")
        with (folder / ARRAYS_NAME).open("wb") as stream:
            write_safetensors(stream, arrays, {"format": "pt"})
        if add_files is not None:
            add_files(folder)


def _side_by_side(parts: Mapping[str, TensorView], factors: Mapping[str, Factors], rows: int) -> Factors:
    """A and B of the matrix, of that many rows, in which the linears `parts` lie; each has columns of B for itself."""
    a = np.concatenate([factors[name][0] for name in parts])
    b, start = np.zeros((rows, len(a)), np.float32), 0
    for name, view in parts.items():
        values = factors[name][1]
        stop = start + values.shape[1]
        b[slice(None) if view.rows is None else view.rows, start:stop] = values / np.float32(view.scale)
        start = stop
    return a, b


def _linears(config: ModelConfig, layout: Layout, prefix: str) -> Linears:
    """Modules of the layers, named with that prefix -> the model's weights that lie in each, and where."""
    sources = dataclasses.replace(layout, prefixes=(prefix,)).sources_of(config)
    return {
        source.removesuffix(".weight"): parts
        for source, parts in sources.items()
        if all(_LINEAR.fullmatch(name) for name in parts)
    }


def _adapted(
    arrays: SafeTensors, config: ModelConfig, layout: Layout, adapter: Adapter, path: Path
) -> Linears:
    """Those of `_linears` that the file has tensors for; raises for tensors of anything else."""
    pattern = re.compile(re.escape(_TENSOR).replace(r"\{module\}", "(.+)").replace(r"\{factor\}", "[AB]"))
    matches = {name: pattern.fullmatch(name) for name in arrays.names()}
    modules = {match[1] for match in matches.values() if match}
    every = (_linears(config, layout, prefix) for prefix in layout.prefixes)
    linears = next((known for known in every if modules & known.keys()), {})
    unknown = [name for name, match in matches.items() if match is None or match[1] not in linears]
    if unknown:
        raise UnsupportedModelError(
            f"{path}: no updates of linears in a {config.family} model's {config.n_layers} layers: {_some(unknown)}",
            fix=f"name the right base in {ADAPTER_NAME}, or merge the adapter into its base with PEFT",
        )
    named = modules if adapter.modules is None else set(filter(adapter.means, linears))
    if named != modules or not modules:
        raise ModelFormatError(
            f"{path} holds updates of {len(modules)} linears; by target_modules they are {len(named)} of the base "
            f"({_some(sorted(named ^ modules))})",
            fix=_MEND,
        )
    return {module: parts for module, parts in linears.items() if module in modules}


def _check_shapes(
    arrays: SafeTensors, linears: Linears, config: ModelConfig, adapter: Adapter, path: Path
) -> None:
    names, shapes = set(arrays.names()), tensor_shapes(config)
    for module, parts in linears.items():
        rank, (rows, columns) = adapter.rank_of(module), whole_shape(parts, shapes)
        for factor, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            name = _TENSOR.format(module=module, factor=factor)
            found = (
                f"{arrays.dtype_name(name)} {list(arrays.shape(name))}"
                if name in names
                else "not in the file"
            )
            if name not in names or arrays.shape(name) != shape or arrays.dtype_name(name) not in FLOAT_BYTES:
                raise ModelFormatError(
                    f"{path}: {name} is {found}; by the base and {ADAPTER_NAME} floats {list(shape)} are needed",
                    fix=_MEND,
                )


def _views(linears: Linears, scales: Mapping[str, float]) -> dict[str, TensorView]:
    """Of each adapted weight, A and s B."""
    table = {}
    for module, parts in linears.items():
        a, b = (_TENSOR.format(module=module, factor=factor) for factor in "AB")
        for name, view in parts.items():
            table[_a(name)] = TensorView(a)
            table[_b(name)] = TensorView(b, view.rows, scale=view.scale * scales[module])
    return table


def _a(name: str) -> str:
    return f"{name}.A"


def _b(name: str) -> str:
    return f"{name}.B"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
