"""RoPE options of config.json (in transformers' version 4 and 5 spelling) and of GGUF metadata."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast, get_args

from dejavu.errors import ModelFormatError
from dejavu.models.config import RopeScaling, RopeType
from dejavu.models.families.options import Options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import RawTensors

FREQ_FACTORS = "rope_freqs.weight"
"""GGUF tensor [rope_dim / 2] that divides the frequencies (Llama 3.1 and later)."""

_MAX_THETA = 1e20  # far beyond any model; float32 frequencies stay above zero
_MAX_FACTOR = 1e6

_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
}


def rope_from_hf(
    options: Options,
    head_dim: int,
    *,
    theta: float = 10000.0,
    theta_name: str = "rope_theta",
    partial: float | None = None,
    partial_name: str = "partial_rotary_factor",
) -> dict[str, Any]:
    """`ModelConfig`'s `rope_theta`, `rope_scaling`, `rotary_dim` and `max_context`.

    Args:
        options: config.json.
        head_dim: dimensions of a head.
        theta: base, if the config names none.
        theta_name: the base's name in version 4.
        partial: part of a head that is turned, if the config names none; None: the family turns all of it.
        partial_name: its name in version 4.

    Raises:
        UnsupportedModelError: an unknown rope type, or an option that the type does not have.
        ModelFormatError: an option is missing or of a wrong type.
    """
    name = "rope_scaling" if options.group("rope_scaling") else "rope_parameters"
    group = options.group(name)
    context = options.integer("max_position_embeddings")
    scaling, extended = scaling_from_hf(options, name, group, context)
    values = Options(group, where=f"config.json: {name}")
    result: dict[str, Any] = {
        "rope_theta": values.positive("rope_theta", options.positive(theta_name, theta)),
        "rope_scaling": scaling,
        "max_context": extended,
    }
    part = values.number("partial_rotary_factor", options.number(partial_name, partial or 1.0))
    dim = int(head_dim * part)
    if not 2 <= dim <= head_dim or (partial is None and part != 1):
        options.refuse(partial_name, f"RoPE cannot turn {part} of a head's {head_dim} dimensions here")
    if part < 1:
        result["rotary_dim"] = dim
    check_base(scaling, result["rope_theta"], dim, options, name)
    return result


def scaling_from_hf(
    options: Options, name: str, group: Mapping[str, object], context: int
) -> tuple[RopeScaling, int]:
    """Scaling and the context it gives, from one group of options; raises like `rope_from_hf`."""
    values = Options(group, where=f"config.json: {name}")
    kind = values.text("rope_type", values.text("type", "default"))
    if kind not in _KEYS:
        options.refuse(name, f"supported rope types are {', '.join(get_args(RopeType))}")
    unknown = sorted(set(group) - _KEYS[kind] - _COMMON)
    if unknown and kind != "default":  # an unscaled rope has no use for them
        options.refuse(name, f"{', '.join(unknown)} is not an option of rope type {kind}")
    if kind == "default":
        return RopeScaling(), context
    factor = values.positive("factor")
    original = context
    if kind in ("llama3", "yarn"):
        original = options.integer(
            "original_max_position_embeddings", values.integer("original_max_position_embeddings", context)
        )
    if original < 1:
        options.refuse(name, "the original context is empty")
    scaling = RopeScaling(type=cast("RopeType", kind), factor=factor, original_context=original)
    if kind == "llama3":
        low, high = values.positive("low_freq_factor"), values.positive("high_freq_factor")
        if high <= low:
            options.refuse(name, "high_freq_factor must exceed low_freq_factor")
        return RopeScaling("llama3", factor, original, low_freq_factor=low, high_freq_factor=high), context
    if kind == "yarn":
        scaling = RopeScaling(
            "yarn",
            factor,
            original,
            beta_fast=values.number("beta_fast", 0.0) or 32.0,
            beta_slow=values.number("beta_slow", 0.0) or 1.0,
            attention_factor=_yarn_attention(values, factor),
            truncate=values.boolean("truncate", if_none=True),
        )
        if scaling.beta_fast <= 0 or scaling.beta_slow <= 0:
            options.refuse(name, "beta_fast and beta_slow must be above zero")
    return scaling, max(context, int(original * factor))


def rope_to_hf(config: ModelConfig) -> dict[str, object]:
    """The options that `rope_from_hf` reads, in the spelling of version 4, which later versions read too."""
    scaling = config.rope_scaling
    extended = scaling.type in ("linear", "dynamic")  # these multiply the context that is written
    values: dict[str, object] = {
        "rope_theta": config.rope_theta,
        "max_position_embeddings": scaling.original_context if extended else config.max_context,
    }
    if config.rotary_dim:
        values["partial_rotary_factor"] = config.rotary_dim / config.head_dim
    if scaling.type != "default":
        values["rope_scaling"] = scaling_to_hf(scaling)
    return values


def scaling_to_hf(scaling: RopeScaling) -> dict[str, object]:
    """The group that `scaling_from_hf` reads."""
    group: dict[str, object] = {"rope_type": scaling.type, "factor": scaling.factor}
    names = _KEYS[scaling.type]
    if "original_max_position_embeddings" in names:
        group["original_max_position_embeddings"] = scaling.original_context
    fields = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "truncate")
    return group | {name: getattr(scaling, name) for name in fields if name in names}


def rope_from_gguf(options: Options, tensors: RawTensors, head_dim: int) -> dict[str, Any]:
    """As `rope_from_hf`, from GGUF metadata and the tensor `FREQ_FACTORS`."""
    dim = options.integer("rope.dimension_count", head_dim)
    context = options.integer("context_length")
    theta = options.positive("rope.freq_base", 10000.0)
    kind = options.text("rope.scaling.type", "linear")
    factor = options.number("rope.scaling.factor", options.number("rope.scale_linear", 1.0)) or 1.0
    original = options.integer("rope.scaling.original_context_length", context) or context
    stretch = options.number("rope.scaling.attn_factor", 1.0)
    options.boolean("rope.scaling.finetuned")  # says how the scaling came about, not what it is
    if kind not in ("none", "linear", "yarn"):
        options.refuse("rope.scaling.type", "supported are none, linear, yarn")
    if factor <= 0 or stretch <= 0:
        options.refuse("rope.scaling.factor", "a number above zero is needed")
    scaling = RopeScaling(freq_factors=_freq_factors(tensors, dim))
    if kind == "yarn":
        scaling = RopeScaling(
            "yarn",
            factor,
            original,
            attention_factor=stretch * _mscale(factor),
            beta_fast=options.positive("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=options.positive("rope.scaling.yarn_beta_slow", 1.0),
            freq_factors=scaling.freq_factors,
        )
    elif stretch != 1:
        options.refuse("rope.scaling.attn_factor", "only yarn has it")
    elif factor != 1 and kind == "linear":
        scaling = RopeScaling("linear", factor, original, freq_factors=scaling.freq_factors)
    check_base(scaling, theta, dim, options, "rope.scaling.type")
    rotary_dim = 0 if dim == head_dim else dim
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": rotary_dim, "max_context": context}


def rope_to_gguf(config: ModelConfig) -> dict[str, object]:
    """What `rope_from_gguf` reads; `freq_factors` gives the tensor."""
    scaling = config.rope_scaling
    values: dict[str, object] = {"rope.dimension_count": config.rope_dim, "rope.freq_base": config.rope_theta}
    if scaling.type in ("linear", "yarn"):
        values["rope.scaling.type"] = scaling.type
        values["rope.scaling.factor"] = scaling.factor
        values["rope.scaling.original_context_length"] = scaling.original_context
    if scaling.type == "yarn":
        values["rope.scaling.attn_factor"] = scaling.attention_factor / _mscale(scaling.factor)
        values["rope.scaling.yarn_beta_fast"] = scaling.beta_fast
        values["rope.scaling.yarn_beta_slow"] = scaling.beta_slow
    return values


def _freq_factors(tensors: RawTensors, dim: int) -> tuple[float, ...]:
    if FREQ_FACTORS not in set(tensors.names()):
        return ()
    if tensors.shape(FREQ_FACTORS) != (dim // 2,):
        raise ModelFormatError(
            f"tensor {FREQ_FACTORS} has shape {list(tensors.shape(FREQ_FACTORS))}, not {dim // 2}"
        )
    factors = tuple(float(value) for value in tensors.read_rows(FREQ_FACTORS))
    if not all(math.isfinite(value) and value > 0 for value in factors):
        raise ModelFormatError(f"tensor {FREQ_FACTORS} holds values that are not finite and above zero")
    return factors


def check_base(scaling: RopeScaling, theta: float, dim: int, options: Options, name: str) -> None:
    """Refuse what the formulas have no answer for."""
    if (scaling.type == "yarn" and theta <= 1) or (scaling.type == "dynamic" and dim <= 2):
        options.refuse(name, f"{scaling.type} cannot scale a base of {theta} over {dim} dimensions")
    if not theta <= _MAX_THETA or not scaling.factor <= _MAX_FACTOR:
        options.refuse(name, f"a base up to {_MAX_THETA:g} and a factor up to {_MAX_FACTOR:g} are supported")


def _yarn_attention(values: Options, factor: float) -> float:
    if values.has("attention_factor"):
        return values.positive("attention_factor")
    mscale, mscale_all_dim = values.number("mscale", 0.0), values.number("mscale_all_dim", 0.0)
    if mscale and mscale_all_dim:
        return _mscale(factor, mscale) / _mscale(factor, mscale_all_dim)
    return _mscale(factor)


def _mscale(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
