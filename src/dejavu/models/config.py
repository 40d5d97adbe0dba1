"""`ModelConfig`: everything the executors need to know about a decoder, as one frozen value."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from dejavu.errors import UnsupportedModelError

Activation = Literal["relu", "silu", "gelu", "gelu_tanh", "relu2", "fatrelu", "shifted_relu", "drelu"]
THRESHOLDED: tuple[Activation, ...] = ("fatrelu", "shifted_relu")
Norm = Literal["rms", "layer"]
Position = Literal["rope", "alibi", "learned"]
RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeScaling:
    """`rope_scaling` of a Hugging Face config, with its defaults resolved.

    Fields not used by `type` keep their neutral value. `factor` is dimensionless; lengths are tokens.
    """

    type: RopeType = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Multiplies cos and sin (yarn's mscale); 1 for the other types."""
    truncate: bool = True
    """yarn: round the correction range to whole dimensions."""
    freq_factors: tuple[float, ...] = ()
    """Divisors of the unscaled frequencies, one per pair of dimensions (GGUF: `rope_freqs.weight`)."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape and arithmetic of one decoder-only model.

    One forward pass covers every family:

    ``x = embed(token) * embed_scale (+ position) (-> embed norm)``; per layer
    ``x += post_norm(attention(norm(x)))``, ``x += post_norm(mlp(norm(x)))`` (pre-norm), or both branches from
    the same ``x`` (`parallel_residual`), or ``x = norm(x + branch(x))`` (`pre_norm` false: OPT-350m);
    ``logits = softcap(head(final_norm(x)))``.
    """

    family: str
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    """Neurons of an MLP, with the `refined` ones."""
    max_context: int

    refined: int = 0
    """Second copies among the `d_ff` neurons, the last ones (see `dejavu.refinement`)."""
    activation: Activation = "silu"
    """Of x, with r(x) = max(x, 0): relu r(x); relu2 r(x)^2; fatrelu x where x > threshold, else 0; shifted_relu
    r(x - threshold); drelu r(gate) * r(up), the only one that is not act(gate) * up."""
    activation_threshold: float = 0.0
    """Of fatrelu and shifted_relu."""
    gated: bool = True
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    pre_norm: bool = True
    parallel_residual: bool = False
    post_norms: bool = False
    """Extra norms on each branch's output before it is added (Gemma 2 and 3)."""
    final_norm: bool = True
    embed_norm: bool = False
    embed_scale: float = 1.0
    d_embed: int = 0
    """Width of the embedding where it is not `d_model` (OPT-350m: projected in and out); 0: the same."""
    tied_head: bool = True
    biases: tuple[str, ...] = ()
    """Linears that have a bias: of "q", "k", "v", "o", "gate", "up", "down" and "head"."""

    attn_scale: float = 0.0
    """Factor on q.k; 0 means ``head_dim ** -0.5``."""
    qk_norm: bool = False
    """RMS norm over each head's q and k before RoPE (Qwen3, Gemma 3)."""
    attn_softcap: float = 0.0
    logit_softcap: float = 0.0
    sliding_window: int = 0
    """Window in tokens of the layers in `window_layers`; 0: none."""
    window_layers: tuple[bool, ...] = ()
    """Per layer: attention is limited to `sliding_window`. Empty: none is."""

    position: Position = "rope"
    position_offset: int = 0
    """Learned positions: row of position 0 (OPT: 2)."""
    rotary_dim: int = 0
    """Dimensions of a head that RoPE turns (half-split pairing); 0: all of them."""
    rope_theta: float = 10000.0
    rope_local_theta: float = 0.0
    """RoPE base of sliding-window layers, unscaled (Gemma 3); 0: the same as the others."""
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)

    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = (
            "vocab_size",
            "d_model",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "head_dim",
            "d_ff",
            "max_context",
        )
        for name in counts:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
                self._refuse(f"{name} is {value!r}; a positive integer is needed")
        if self.n_heads % self.n_kv_heads:
            self._refuse(f"{self.n_heads} heads cannot share {self.n_kv_heads} K/V heads evenly")
        if not 0 <= self.rotary_dim <= self.head_dim or (self.position == "rope" and self.rope_dim % 2):
            self._refuse(f"RoPE on {self.rope_dim} of {self.head_dim} dimensions; an even part is needed")
        if not 0 <= self.refined < self.d_ff:
            self._refuse(f"{self.refined} of {self.d_ff} neurons are second copies; fewer are possible")
        if self.activation_threshold and self.activation not in THRESHOLDED:
            self._refuse(f"activation_threshold is {self.activation_threshold}; {self.activation} has none")
        if self.activation == "drelu" and not self.gated:
            self._refuse("activation is drelu; the MLP has no gate")
        floats = ("norm_eps", "embed_scale", "attn_scale", "rope_theta", "attn_softcap", "logit_softcap")
        for name in (*floats, "activation_threshold"):
            if not math.isfinite(getattr(self, name)):
                self._refuse(f"{name} is {getattr(self, name)!r}; a finite number is needed")
        if self.norm_eps < 0 or self.sliding_window < 0:
            self._refuse(
                f"norm_eps is {self.norm_eps}, sliding_window {self.sliding_window}; at least 0 is needed"
            )
        if self.window_layers and len(self.window_layers) != self.n_layers:
            self._refuse(f"window_layers has {len(self.window_layers)} of {self.n_layers} layers")

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedModelError(f"{self.family}: {what}")

    @property
    def exact_zeros(self) -> bool:
        """Whether the activation makes neurons exactly zero."""
        return self.activation not in ("silu", "gelu", "gelu_tanh")

    @property
    def base_neurons(self) -> int:
        """The model's own neurons: `d_ff` without the second copies."""
        return self.d_ff - self.refined

    @property
    def embed_dim(self) -> int:
        """Width of a row of the embedding."""
        return self.d_embed or self.d_model

    @property
    def scale(self) -> float:
        """Factor on q.k."""
        return self.attn_scale or self.head_dim**-0.5

    @property
    def rope_dim(self) -> int:
        """Number of dimensions of a head that RoPE turns."""
        return self.rotary_dim or self.head_dim

    def windowed(self, layer: int) -> bool:
        """Whether attention of `layer` is limited to `sliding_window`."""
        return bool(self.window_layers) and self.window_layers[layer] and self.sliding_window > 0

    def to_dict(self) -> dict[str, object]:
        """Plain JSON-able values; `from_dict` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> ModelConfig:
        """Rebuild from `to_dict`. Unknown or missing fields raise `UnsupportedModelError`."""
        data = dict(values)
        try:
            scaling = dict(data["rope_scaling"])  # type: ignore[call-overload]
            scaling["freq_factors"] = tuple(scaling["freq_factors"])
            data["rope_scaling"] = RopeScaling(**scaling)
            for name in ("eos_token_ids", "window_layers", "biases"):
                data[name] = tuple(data[name])  # type: ignore[arg-type]
            return cls(**data)  # type: ignore[arg-type]
        except (TypeError, KeyError) as error:
            raise UnsupportedModelError(f"model configuration: {error}") from error
