"""What a family of models is: how its options become a `ModelConfig`, and where its tensors lie in a file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import ModelFormatError, UnsupportedModelError
from dejavu.models.tensors import tensor_shapes
from dejavu.models.weights import TensorView

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import RawTensors, Rows

_SHOWN = 5  # names in an error message


@dataclass(frozen=True)
class Layout:
    """Where a file format puts a family's tensors.

    Sources are templates: ``{p}`` becomes the file's prefix, ``{i}`` the layer.
    """

    sources: Mapping[str, str | tuple[str, ...]]
    """dejavu's name without layer and ``.weight``/``.bias`` ("q", "attn_norm", "head"), or a whole name
    ("embed.position"), -> the file's; of several the first one that is there."""
    prefixes: tuple[str, ...] = ("",)
    """Checkpoints of a bare model lack the outermost part of the names."""
    rows: Mapping[str, Callable[[ModelConfig], Rows]] = field(default_factory=dict)
    """Rows to take of a fused or permuted source, by the same keys as `sources`."""
    norm_offset: float = 0.0
    """Added to the norms' weights."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Factors on tensors, by the same keys as `sources`."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that the model does not use (buffers, other modalities)."""

    def table(self, config: ModelConfig, tensors: RawTensors) -> dict[str, TensorView]:
        """Views of all tensors that `config` calls for.

        Raises:
            ModelFormatError: tensors are missing or have other shapes than the config says.
            UnsupportedModelError: the file holds tensors that the family does not have.
        """
        names = set(tensors.names())
        if config.n_layers > len(names):
            raise ModelFormatError(
                f"the options say {config.n_layers} layers; there are {len(names)} tensors"
            )
        prefix = self._prefix(names)
        shapes = tensor_shapes(config)
        sources: dict[str, tuple[str, str]] = {}  # dejavu's name -> key, source
        missing: list[str] = []
        for name in shapes:
            key, candidates = self._candidates(name, prefix)
            source = next((candidate for candidate in candidates if candidate in names), None)
            if source is None:
                missing.append(candidates[0])
            else:
                sources[name] = key, source
        if missing:
            raise ModelFormatError(f"{config.family}: the model file lacks {_some(missing)}")
        extra = names - {source for _, source in sources.values()}
        if config.tied_head:
            extra -= set(self._candidates("head.weight", prefix)[1])
        unknown = sorted(name for name in extra if not any(re.search(p, name) for p in self.ignored))
        if unknown:
            raise UnsupportedModelError(
                f"{config.family}: the file holds tensors that its options do not call for: {_some(unknown)}"
            )
        self._check_shapes(sources, shapes, tensors)
        rows = {key: cut(config) for key, cut in self.rows.items()}
        return {name: self._view(key, source, rows.get(key)) for name, (key, source) in sources.items()}

    def sources_of(self, config: ModelConfig) -> dict[str, dict[str, TensorView]]:
        """What a new file holds: its tensors' names -> dejavu's tensors that lie there, and where.

        The inverse of `table`: entry ``rows[i]`` of a source is entry i of the tensor, less ``add``, over ``scale``.
        """
        rows = {key: cut(config) for key, cut in self.rows.items()}
        found: dict[str, dict[str, TensorView]] = {}
        for name in tensor_shapes(config):
            key, candidates = self._candidates(name, self.prefixes[0])
            source = candidates[0]
            found.setdefault(source, {})[name] = self._view(key, source, rows.get(key))
        return found

    def _view(self, key: str, source: str, rows: Rows) -> TensorView:
        add = self.norm_offset if key.endswith("norm") else 0.0
        return TensorView(source, rows, add=add, scale=self.scales.get(key, 1.0))

    def _check_shapes(
        self,
        sources: Mapping[str, tuple[str, str]],
        shapes: Mapping[str, tuple[int, ...]],
        tensors: RawTensors,
    ) -> None:
        """A source has the shape of its tensor; a fused one has the rows of all its parts."""
        wanted: dict[str, tuple[int, ...]] = {}
        for name, (key, source) in sources.items():
            before = wanted[source][0] if key in self.rows and source in wanted else 0
            wanted[source] = (before + shapes[name][0], *shapes[name][1:])
        for source, shape in wanted.items():
            found = tensors.shape(source)
            if found != shape:
                raise ModelFormatError(
                    f"tensor {source} has shape {list(found)}; the model's options call for {list(shape)}"
                )

    def head(self, names: set[str]) -> str | None:
        """Name of the output head in the file, if there is one."""
        return next((c for c in self._candidates("head.weight", self._prefix(names))[1] if c in names), None)

    def embedding(self, names: set[str]) -> str | None:
        """Name of the token embedding in the file, if there is one."""
        return next((c for c in self._candidates("embed.weight", self._prefix(names))[1] if c in names), None)

    def _prefix(self, names: set[str]) -> str:
        """The prefix under which the first layer's norm lies."""
        for prefix in self.prefixes:
            if any(name in names for name in self._candidates("layers.0.attn_norm.weight", prefix)[1]):
                return prefix
        return self.prefixes[0]

    def _candidates(self, name: str, prefix: str) -> tuple[str, list[str]]:
        """Key into `sources` and the possible names in the file of dejavu's `name`."""
        layer = ""
        key = name
        if name.startswith("layers."):
            _, layer, key = name.split(".", 2)
        suffix = ""
        if key not in self.sources:
            key, _, suffix = key.rpartition(".")
            suffix = f".{suffix}"
        templates = self.sources[key]
        templates = (templates,) if isinstance(templates, str) else templates
        return key, [template.format(p=prefix, i=layer) + suffix for template in templates]


@dataclass(frozen=True)
class Family:
    """One family: data and two small functions, no forward pass."""

    name: str
    model_types: tuple[str, ...]
    """`model_type` of Hugging Face's config.json."""
    hf_architectures: tuple[str, ...]
    """`architectures` of config.json."""
    config_from_hf: Callable[[Mapping[str, object]], ModelConfig]
    """Raises `UnsupportedModelError` for options that dejavu does not compute, `ModelFormatError` for wrong
    ones."""
    config_to_hf: Callable[[ModelConfig], dict[str, object]]
    """The inverse: a config.json that `config_from_hf` reads as the same configuration, where the format can say it."""
    hf: Layout
    scales_from_hf: Callable[[Mapping[str, object]], Mapping[str, float]] | None = None
    """`Layout.scales` of a config.json, where they depend on its options."""
    scales_from_gguf: Callable[[Mapping[str, object]], Mapping[str, float]] | None = None
    gguf_architectures: tuple[str, ...] = ()
    """`general.architecture`."""
    config_from_gguf: Callable[[Mapping[str, object], RawTensors], ModelConfig] | None = None
    """Raises like `config_from_hf`."""
    config_to_gguf: Callable[[ModelConfig], tuple[str, dict[str, object]]] | None = None
    """The inverse: `general.architecture`, and the options under its prefix."""
    gguf: Layout | None = None


def fused_by_head(part: int) -> Callable[[ModelConfig], NDArray[np.int64]]:
    """Rows of q (0), k (1) or v (2) in a fused matrix laid out ``[heads, 3, head_dim]``."""

    def rows(config: ModelConfig) -> NDArray[np.int64]:
        order = np.arange(config.n_heads * 3 * config.head_dim, dtype=np.int64)
        return order.reshape(config.n_heads, 3, -1)[:, part].ravel()

    return rows


def fused_by_part(part: int) -> Callable[[ModelConfig], slice]:
    """Rows of q (0), k (1) or v (2) in a fused matrix laid out ``[3, heads, head_dim]``."""

    def rows(config: ModelConfig) -> slice:
        size = config.n_heads * config.head_dim
        return slice(part * size, (part + 1) * size)

    return rows


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
