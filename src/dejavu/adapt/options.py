"""`AdaptOptions`: how a model is adapted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from dejavu.errors import InputError
from dejavu.plan import Sketch

if TYPE_CHECKING:
    from dejavu.codecs import Codec
    from dejavu.plan import AccessPlan

ActivationName = Literal["keep", "relu", "shifted", "fatrelu", "drelu"]
LossName = Literal["forward-kl", "reverse-kl", "mixed"]
MethodName = Literal["full", "lora"]
ValuesName = Literal["exact", "leading"]

HIGHEST_LEARNING_RATE = 0.1
"""Of AdamW: a step moves a weight by about as much, and weights of linears are hardly larger."""
BITS = 4
"""Of sketches, where nothing else is asked for."""
RANK = 32
"""Of updates of low rank, where nothing else is asked for."""


@dataclass(frozen=True)
class AdaptOptions:
    """How a model is adapted.

    Attributes:
        density: of every layer's neurons, selected by sketches; or
        plan: whose selectors and densities are used; or
        frontier: densities as `density`, distinct, one after the other from the highest to the lowest in one run, each for
            a share of it in inverse proportion to the density. Exactly one of the three.
        activation: "keep": the model's own, and neurons are selected; others: of a twin whose gates close by themselves, as
            often as the densities say (see `dejavu.adapt.twin`).
        method: "full": weights change as a whole; "lora": by updates of low rank (see `dejavu.adapt.low_rank_update`).
        rank: of these; None: `RANK`.
        alpha: updates count alpha / rank; None: as the rank.
        bits: of the sketches that a density asks for; None: `BITS`.
        values: what a selected neuron holds, see `dejavu.plan.Sketch`.
        codec: of the weights in deployment.
        loss: on the next-token distributions of the dense and the masked model.
        match_hidden: weight of the loss on the residual streams; 0: none.
        hours: how long to train, all densities together; or
        tokens: on how many. Exactly one of the two.
        learning_rate: of the MLPs, at its highest; up to `HIGHEST_LEARNING_RATE`.
        batch_tokens: of a step, at least.
        seed: of the order of the text.
    """

    density: float | None = None
    plan: AccessPlan | None = None
    frontier: tuple[float, ...] | None = None
    activation: ActivationName = "keep"
    method: MethodName = "full"
    rank: int | None = None
    alpha: int | None = None
    bits: int | None = None
    values: ValuesName = "exact"
    codec: Codec = "int8"
    loss: LossName = "forward-kl"
    match_hidden: float = 0.0
    hours: float | None = None
    tokens: int | None = None
    learning_rate: float = 2e-4
    batch_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.density, self.plan, self.frontier)) != 1:
            raise InputError(
                "either a density, a plan or the densities of a frontier are needed, and only one of them",
                fix="add --density 0.33, --plan PLAN or --frontier 0.5,0.33,0.2",
            )
        for density in self.densities:
            if not 0 < density <= 1:
                raise InputError(f"density is {density:g}; above 0 and up to 1 is possible")
        if self.activation not in get_args(ActivationName):
            raise InputError(
                f"activation {self.activation!r} is none that a model can be adapted to; "
                f"{', '.join(get_args(ActivationName))} are",
                fix="add --activation relu",
            )
        if self.plan is not None and self.activation != "keep":
            raise InputError(
                f"a plan selects neurons of a model that keeps its activation; with {self.activation} gates select them",
                fix="give --density in the place of --plan",
            )
        if self.values == "leading" and (self.plan is not None or self.activation != "keep"):
            raise InputError(
                "leading values are those of sketches that a density asks for; a plan says by itself what neurons hold",
                fix="leave --values away",
            )
        if self.bits is not None and (self.plan is not None or self.activation != "keep"):
            raise InputError(
                "bits are those of sketches that a density asks for; a plan says them by itself, and a twin has none",
                fix="leave --bits away",
            )
        self._check_method()
        if self.frontier is not None:
            self._check_frontier(self.frontier)
        if (self.hours is None) == (self.tokens is None):
            raise InputError(
                "either hours or a number of tokens is needed, and not both", fix="add --hours 2"
            )
        for name, value in (
            ("hours", self.hours),
            ("tokens", self.tokens),
            ("learning rate", self.learning_rate),
            ("tokens of a batch", self.batch_tokens),
            ("rank", self.rank),
            ("alpha", self.alpha),
        ):
            if value is not None and not value > 0:
                raise InputError(f"{name}: {value}; it must be above 0")
        if self.learning_rate > HIGHEST_LEARNING_RATE:
            raise InputError(
                f"a learning rate of {self.learning_rate:g}; above 0 and up to {HIGHEST_LEARNING_RATE:g} is possible",
                fix="leave --learning-rate out, or give one such as 3e-4",
            )
        if not self.match_hidden >= 0:
            raise InputError(
                f"the weight of the hidden states is {self.match_hidden}; at least 0 is possible"
            )

    @property
    def densities(self) -> tuple[float, ...]:
        """Of the stages of the run, from the gentlest to the strictest; empty: a plan says them."""
        if self.frontier is not None:
            return tuple(sorted(self.frontier, reverse=True))
        return () if self.density is None else (self.density,)

    @property
    def sketch(self) -> Sketch:
        """The selector of a layer where a density is asked for; thresholds are set in training."""
        return Sketch(bits=self.bits or BITS, threshold=0.0, values=self.values)

    @property
    def adapter(self) -> tuple[int, int] | None:
        """Rank and alpha of the updates; None: weights change as a whole."""
        if self.method == "full":
            return None
        rank = self.rank or RANK
        return rank, self.alpha or rank

    def _check_method(self) -> None:
        if self.method not in get_args(MethodName):
            raise InputError(
                f"method {self.method!r} is unknown; there are {', '.join(get_args(MethodName))}",
                fix="add --method lora",
            )
        if self.method == "full" and (self.rank, self.alpha) != (None, None):
            raise InputError("a rank or alpha is that of low-rank updates", fix="add --method lora")
        if self.method == "lora" and self.activation != "keep":
            raise InputError(
                f"an adapter holds updates of weights; with {self.activation} the model has another activation too",
                fix="leave --method lora away",
            )

    def _check_frontier(self, frontier: tuple[float, ...]) -> None:
        if not frontier:
            raise InputError("a frontier of no densities", fix="add --frontier 0.5,0.33,0.2")
        names = [f"{density:g}" for density in frontier]  # of the folders too
        if len(set(names)) < len(names):
            raise InputError(
                f"the densities of a frontier must be distinct; these are {', '.join(names)}",
                fix="give each density once",
            )


def parse_densities(text: str) -> tuple[float, ...]:
    """Read "0.445,0.25".

    Raises:
        InputError: a part is not a number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"--frontier: {text!r} is not a list of densities", fix="write such as --frontier 0.5,0.33,0.2"
        ) from error
