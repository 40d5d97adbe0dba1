"""`AccessPlan`: the answers to "what does a token touch?" for all layers of one model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from dejavu.errors import InputError, PlanError
from dejavu.nested import LEADING_BITS, stored_bits
from dejavu.plan import checks
from dejavu.plan.compensator import Compensator
from dejavu.plan.selectors import (
    Dense,
    HeadSelector,
    LowRank,
    NeuronSelector,
    Products,
    Sketch,
    Static,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dejavu.codecs import Codec
    from dejavu.models.config import ModelConfig

SCHEMA = 1


@dataclass(frozen=True)
class KvPolicy:
    """What becomes of the keys and values of a K/V group none of whose query heads is selected.

    `write`: computed all the same. `recompute`: not computed; the layer's input is kept, and K/V of all missing
    positions is computed when a head of the group is next selected, or when `buffer` positions are missing.
    """

    kind: Literal["write", "recompute"] = "write"
    buffer: int = 64

    def __post_init__(self) -> None:
        checks.one_of("K/V policy", self.kind, ("write", "recompute"))
        checks.whole("buffer", self.buffer, 1, 4096)


@dataclass(frozen=True, kw_only=True, eq=False)
class VocabularySketch:
    """Logits from the leading `bits` of the head's rows; exact ones for the best `exact` of them.

    With w' for what the leading bits say of a row w, m for `mean`, x for what the head multiplies and p_j for `directions`,
    a logit that is not exact is

        w' (x - m) + w m + sum_j c_j p_j (x - m),   c_j = `missing` of the row along p_j, near (w - w') p_j.

    What all tokens have in common is exact, being known beforehand, and the directions in which they differ most are more
    exact than the others. Of `missing` the leading four bits are read, as of the head.
    """

    kind: ClassVar = "sketch"
    bits: int
    exact: int
    mean: NDArray[np.float32] = field(
        default_factory=lambda: np.empty(0, np.float32), metadata={"stored": "float32"}
    )
    """[E]: of x over some text; or [0]: zero."""
    directions: NDArray[np.float32] = field(
        default_factory=lambda: np.empty((0, 0), np.float32), metadata={"stored": "float32"}
    )
    """[J, E]: orthonormal; or [0, 0]."""
    missing: NDArray[np.float32] = field(
        default_factory=lambda: np.empty((0, 0), np.float32), metadata={"stored": "int8"}
    )
    """[V, J]: rounded to int8, with a float16 scale per 32 values; or [0, 0]."""

    def __post_init__(self) -> None:
        checks.one_of("bits", self.bits, (2, 3, 4))
        checks.whole("exact", self.exact, 1, 2**31 - 1)
        object.__setattr__(self, "mean", checks.array("mean", self.mean, np.float32, 1))
        object.__setattr__(self, "directions", checks.array("directions", self.directions, np.float32, 2))
        object.__setattr__(self, "missing", checks.int8_rows("missing", self.missing))
        checks.shape("missing", self.missing.shape, (len(self.missing), len(self.directions)))


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """One layer."""

    neurons: NeuronSelector = field(default_factory=Dense)
    heads: HeadSelector = field(default_factory=Dense)
    compensator: Compensator | None = None

    def __post_init__(self) -> None:
        for what, value, known in (
            ("neurons", self.neurons, get_args(NeuronSelector)),
            ("heads", self.heads, get_args(HeadSelector)),
        ):
            if not isinstance(value, known):
                kinds = ", ".join(k.kind for k in known)
                raise PlanError(f"{what}: selector {value!r:.60}; supported: {kinds}")
        if not isinstance(self.compensator, Compensator | None):
            raise PlanError(f"compensator is {self.compensator!r:.60}; a Compensator or None is needed")


@dataclass(frozen=True, kw_only=True, eq=False)
class AccessPlan:
    """What each token touches in one model.

    Raises:
        PlanError: a value that is out of range.
    """

    model: str
    """`Weights.fingerprint` of the model."""
    layers: tuple[LayerPlan, ...]
    name: str = ""
    kv: KvPolicy = field(default_factory=KvPolicy)
    vocabulary: Dense | VocabularySketch = field(default_factory=Dense)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """How the plan was chosen and what it measured; JSON-able."""

    def __post_init__(self) -> None:
        for what, value in (("model", self.model), ("name", self.name)):
            if len(value) > 200 or not value.isprintable():
                raise PlanError(f"{what} is {value!r:.60}; at most 200 printable characters are needed")
        try:
            stored_bits(self._bits)
        except InputError as error:
            raise PlanError(error.args[0], fix=error.fix) from None

    @classmethod
    def uniform(
        cls,
        model: str,
        n_layers: int,
        *,
        neurons: NeuronSelector | None = None,
        heads: HeadSelector | None = None,
        kv: KvPolicy | None = None,
        vocabulary: Dense | VocabularySketch | None = None,
        name: str = "",
    ) -> AccessPlan:
        """The same selectors in every layer, for kinds that need no training; None is dense."""
        layer = LayerPlan(neurons or Dense(), heads or Dense())
        return cls(
            model=model,
            layers=(layer,) * n_layers,
            name=name,
            kv=kv or KvPolicy(),
            vocabulary=vocabulary or Dense(),
        )

    @classmethod
    def load(cls, folder: Path | str, *, fingerprint: str | None = None) -> AccessPlan:
        """Read a saved plan; `fingerprint`: of the model that it must be for.

        Raises:
            PlanError: the files are missing, damaged, of another schema, or for another model.
        """
        from dejavu.plan.storage import read_plan

        plan = read_plan(Path(folder))
        if fingerprint is not None:
            plan.check_model(fingerprint)
        return plan

    def save(self, folder: Path | str) -> None:
        """Write ``plan.json`` and ``predictors.safetensors`` into `folder`, whole or not at all.

        Raises:
            PlanError: the folder cannot be written, the disk is full, or `evidence` is not JSON-able.
        """
        from dejavu.plan.storage import write_plan

        write_plan(self, Path(folder))

    @property
    def leading(self) -> int:
        """How many leading bits of neurons are to lie apart in a packed model; 0: none are read."""
        return stored_bits(self._bits)

    def can_read(self, leading: int) -> bool:
        """Whether a model with so many leading bits apart will do: of four, sketches of three can be read too."""
        return self.leading in (0, leading) or (self.leading, leading) == (3, 4)

    @property
    def _bits(self) -> set[int]:
        """Of the sketches of neurons."""
        return {layer.neurons.bits for layer in self.layers if isinstance(layer.neurons, Sketch)}

    def suits(self, codec: Codec) -> bool:
        """Whether weights held in `codec` have the leading bits that the plan reads."""
        reads = self._bits or isinstance(self.vocabulary, VocabularySketch)
        return not reads or (codec in LEADING_BITS and self._bits <= set(LEADING_BITS[codec]))

    def check_codec(self, codec: Codec) -> None:
        """Raises `PlanError` where the plan does not suit `codec`."""
        if not self.suits(codec):
            usable = [known for known in LEADING_BITS if self._bits <= set(LEADING_BITS[known])]
            raise PlanError(
                f"the plan {self.name!r} reads leading bits of the weights that {codec} does not have",
                fix=f"use --codec {' or '.join(usable)}, or --plan off",
            )

    def check_model(self, fingerprint: str) -> None:
        """Whether the plan is for the model of that fingerprint; raises `PlanError`."""
        if self.model != fingerprint:
            raise PlanError(
                f"the plan {self.name!r} is for model {self.model[:16]}, this one is {fingerprint[:16]}",
                fix="train a plan for this model: dejavu train MODEL --text FILE -o PLAN",
            )

    def check_fits(self, config: ModelConfig, fingerprint: str) -> None:
        """Whether the plan is for this model, and its arrays have the shapes that it needs; raises `PlanError`."""
        self.check_model(fingerprint)
        if len(self.layers) != config.n_layers:
            raise PlanError(f"the plan has {len(self.layers)} layers, the model {config.n_layers}")
        for i, layer in enumerate(self.layers):
            _check_selector(f"layer {i}: neurons", layer.neurons, config.base_neurons, config.d_model)
            if isinstance(layer.neurons, Products):
                products = config.base_neurons * (2 if config.gated else 1)
                checks.shape(f"layer {i}: neurons: bias", layer.neurons.bias.shape, (products,))
            _check_selector(f"layer {i}: heads", layer.heads, config.n_heads, config.d_model)
            if layer.compensator is not None:
                checks.shape(f"layer {i}: compensator bias", layer.compensator.bias.shape, (config.d_model,))
        if isinstance(self.vocabulary, VocabularySketch):
            _check_vocabulary(self.vocabulary, config)


def _check_vocabulary(sketch: VocabularySketch, config: ModelConfig) -> None:
    """Whether arrays fit the head."""
    along = len(sketch.directions)
    if len(sketch.mean):
        checks.shape("vocabulary: mean", sketch.mean.shape, (config.embed_dim,))
    if along:
        checks.shape("vocabulary: directions", sketch.directions.shape, (along, config.embed_dim))
        checks.shape("vocabulary: missing", sketch.missing.shape, (config.vocab_size, along))


def _check_selector(what: str, selector: NeuronSelector, n: int, d: int) -> None:
    """Whether arrays fit `n` neurons or heads and a residual stream of width `d`."""
    if isinstance(selector, LowRank | Products):
        checks.shape(f"{what}: a", selector.a.shape, (selector.rank, d))
    if isinstance(selector, LowRank):
        checks.shape(f"{what}: bias", selector.bias.shape, (n,))
    if isinstance(selector, Static) and selector.indices.size and selector.indices[-1] >= n:
        raise PlanError(f"{what}: index {selector.indices[-1]} of {n}")
