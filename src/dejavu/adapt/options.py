"""`AdaptOptions`: how a model is adapted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dejavu.errors import InputError

if TYPE_CHECKING:
    from dejavu.codecs import Codec
    from dejavu.plan import AccessPlan

LossName = Literal["forward-kl", "reverse-kl", "mixed"]


@dataclass(frozen=True)
class AdaptOptions:
    """How a model is adapted.

    Attributes:
        density: of every layer's neurons, selected by sketches; or
        plan: whose selectors and densities are used. Exactly one of the two.
        bits: of the sketches.
        codec: of the weights in deployment.
        loss: on the next-token distributions of the dense and the masked model.
        match_hidden: weight of the loss on the residual streams; 0: none.
        hours: how long to train; or
        tokens: on how many. Exactly one of the two.
        learning_rate: of the MLPs, at its highest.
        batch_tokens: of a step, at least.
        seed: of the order of the text.
    """

    density: float | None = None
    plan: AccessPlan | None = None
    bits: int = 4
    codec: Codec = "int8"
    loss: LossName = "forward-kl"
    match_hidden: float = 0.0
    hours: float | None = None
    tokens: int | None = None
    learning_rate: float = 2e-4
    batch_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.density is None) == (self.plan is None):
            raise InputError("either a density or a plan is needed, and not both", fix="add --density 0.33")
        if self.density is not None and not 0 < self.density <= 1:
            raise InputError(f"density is {self.density}; above 0 and up to 1 is possible")
        if (self.hours is None) == (self.tokens is None):
            raise InputError(
                "either hours or a number of tokens is needed, and not both", fix="add --hours 2"
            )
        for name, value in (
            ("hours", self.hours),
            ("tokens", self.tokens),
            ("learning rate", self.learning_rate),
            ("tokens of a batch", self.batch_tokens),
        ):
            if value is not None and not value > 0:
                raise InputError(f"{name}: {value}; it must be above 0")
        if not self.match_hidden >= 0:
            raise InputError(
                f"the weight of the hidden states is {self.match_hidden}; at least 0 is possible"
            )
