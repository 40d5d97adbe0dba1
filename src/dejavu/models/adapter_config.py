"""`Adapter`: what the ``adapter_config.json`` of a LoRA adapter says, as PEFT writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from dejavu.errors import ModelFormatError, UnsupportedModelError
from dejavu.models.families.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    T = TypeVar("T")

ADAPTER_NAME = "adapter_config.json"

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "modules_to_save": ([],),
    "target_parameters": ([],),
    "trainable_token_indices": ([], {}),
    "layer_replication": ([],),
    "alora_invocation_tokens": ([],),
    "use_dora": (False,),
    "use_qalora": (False,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # others change the base
}
"""Options that change what is computed, and the values with which they do not."""
_IGNORED = (
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
)
"""Options of training, or of something that is not in use."""
_NARROWING = ("exclude_modules", "layers_to_transform")
_PEFT_DEFAULTS = {"r": 8, "lora_alpha": 8}
_MAX_RANK = 1 << 16


@dataclass(frozen=True)
class Adapter:
    """Options of an adapter.

    Attributes:
        base: name of the base, as `sources.resolve` takes it.
        rank: r of the modules that `ranks` does not name.
        alpha: of those that `alphas` does not name.
        revision: of the base; None: as `resolve` does without.
        ranks: by the ends of modules' names, the first that fits.
        alphas: likewise.
        stabilised: whether updates are divided by the root of the rank instead of the rank.
        modules: ends of the names of all modules that are adapted; None: it does not say all there is to it.
    """

    base: str
    rank: int
    alpha: float
    revision: str | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    stabilised: bool = False
    modules: Collection[str] | None = None

    @classmethod
    def read(cls, values: Mapping[str, object], where: str) -> Adapter:
        """The options of a file.

        Raises:
            ModelFormatError: options are missing or of a wrong type.
            UnsupportedModelError: by the options the adapter is no plain LoRA.
        """
        options = Options(values, where=where, defaults=_PEFT_DEFAULTS)
        if not options.has("base_model_name_or_path"):
            raise ModelFormatError(f"{where} names no base", fix="add base_model_name_or_path to it")
        try:
            for name, neutral in _NEUTRAL.items():
                options.require(name, *neutral)
            adapter = cls(
                base=options.text("base_model_name_or_path"),
                rank=_rank(options, "r"),
                alpha=options.number("lora_alpha"),
                revision=options.text("revision") if options.has("revision") else None,
                ranks=_pattern(options, "rank_pattern", _rank),
                alphas=_pattern(options, "alpha_pattern", Options.number),
                stabilised=options.boolean("use_rslora"),
                modules=_modules(options, values),
            )
            options.skip(*_IGNORED, *_NARROWING)
            options.refuse_unread()
        except UnsupportedModelError as error:
            raise UnsupportedModelError(
                error.args[0], fix="merge it into its base with PEFT (merge_and_unload) and open the result"
            ) from error
        return adapter

    def options(self) -> dict[str, object]:
        """What `read` reads, and PEFT."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "revision": self.revision,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "rank_pattern": dict(self.ranks),
            "alpha_pattern": dict(self.alphas),
            "use_rslora": self.stabilised,
            "target_modules": None if self.modules is None else list(self.modules),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
        }

    def rank_of(self, module: str) -> int:
        """The rank of a module's update."""
        return _first(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What a module's update is multiplied by."""
        rank = self.rank_of(module)
        return _first(self.alphas, module, self.alpha) / (rank**0.5 if self.stabilised else rank)

    def means(self, module: str) -> bool:
        """Whether `modules`, which is not None, names a module."""
        return any(end in (self.modules or ()) for end in _ends(module))


def _rank(options: Options, name: str) -> int:
    rank = options.integer(name, at_most=_MAX_RANK)
    if not rank:
        options.refuse(name, "ranks are above 0")
    return rank


def _pattern(options: Options, name: str, read: Callable[[Options, str], Any]) -> dict[str, Any]:
    """Values by ends of modules' names; PEFT takes regular expressions too."""
    group = options.group(name)
    if not all(re.fullmatch(r"[\w.]+", key) for key in group):
        options.refuse(name, "names of modules are supported, and no regular expressions")
    values = Options(group, where=name)
    return {key: read(values, key) for key in group}


def _modules(options: Options, values: Mapping[str, object]) -> Collection[str] | None:
    """A regular expression is not followed: the tensors say what it stood for."""
    if isinstance(values.get("target_modules"), str):
        options.skip("target_modules")
        return None
    modules = options.texts("target_modules")
    narrowed = any(options.has(name) for name in _NARROWING)
    return None if narrowed or modules is None else frozenset(modules)


def _first(pattern: Mapping[str, T], module: str, otherwise: T) -> T:
    fitting = [end for end in _ends(module) if end in pattern]
    return pattern[min(fitting, key=list(pattern).index)] if fitting else otherwise


def _ends(module: str) -> Iterator[str]:
    """The name, and what is left of it after each dot."""
    yield module
    for dot in re.finditer(r"\.", module):
        yield module[dot.end() :]
