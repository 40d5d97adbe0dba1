"""`TrainOptions`: what kind of plan is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dejavu.errors import InputError
from dejavu.training.examples import Target

if TYPE_CHECKING:
    from dejavu.training.learner import LearnName

SelectorName = Literal["sketch", "low_rank", "threshold", "auto"]

DEFAULT_RANK = 128
DEFAULT_TOKENS: dict[LearnName, int] = {"sizes": 65_536, "labels": 400_000}
"""By what is learned: covariances need far fewer than a classifier."""
DEFAULT_HEADS_RANK = 32
LEARNING_RATE = 2e-3
HIGHEST_LEARNING_RATE = 1.0
"""Beyond it every step leads away from what was learned."""
FIRST_DENSITY = 0.4
"""Target of the labels, and middle of the densities that are measured, where only a ratio is asked for."""


@dataclass(frozen=True)
class TrainOptions:
    """What kind of plan is wanted.

    Attributes:
        selector: of the neurons; "auto" lets each layer choose among sketches, threshold and, with a `rank`, low rank.
        density: mean density of the neurons over layers; or
        max_ppl_ratio: the highest perplexity ratio. Exactly one of the two.
        uniform: the same density in all layers, without a search.
        values: what a neuron that a sketch selects holds, see `dejavu.plan.Sketch`.
        bits: of the sketches to choose from; None: 4, which read no more than fewer do.
        rank: of the low-rank predictors of neurons.
        hidden: their middle layer.
        learn: what low-rank predictors learn, see `LowRankOptions`; None: sizes, or with a ReLU in the middle labels.
        lookahead: distance of the input of sketches and low-rank predictors.
        heads_density: mean density of the heads, by low-rank predictors; None: all heads.
        heads_rank: their rank.
        compensator: rank of what stands in for skipped neurons, where it pays; None: nothing does.
        kv_policy: of the keys and values of skipped heads, see `dejavu.plan.KvPolicy`.
        tokens: that low-rank predictors learn from; None: `DEFAULT_TOKENS` of what they learn.
        search_tokens: of held-out text, for each measurement of the search.
        verify_tokens: of other held-out text, for the evidence.
        learning_rate: of low-rank predictors that learn labels.
        seed: of everything.
    """

    selector: SelectorName = "auto"
    density: float | None = None
    max_ppl_ratio: float | None = None
    uniform: bool = False
    bits: tuple[int, ...] | None = None
    values: Literal["exact", "leading"] = "exact"
    rank: int | None = None
    hidden: Literal["linear", "relu"] = "linear"
    learn: LearnName | None = None
    lookahead: int = 0
    heads_density: float | None = None
    heads_rank: int = DEFAULT_HEADS_RANK
    compensator: int | None = None
    kv_policy: Literal["write", "recompute"] = "write"
    tokens: int | None = None
    search_tokens: int = 2048
    verify_tokens: int = 10_000
    learning_rate: float = LEARNING_RATE
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.density is None) == (self.max_ppl_ratio is None):
            raise InputError(
                "either a density or a highest perplexity ratio is needed, and not both",
                fix="give --density, such as 0.4, or --max-ppl-ratio, such as 1.02",
            )
        for name, value in (("density", self.density), ("heads density", self.heads_density)):
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} is {value}; above 0 and up to 1 is possible")
        if self.max_ppl_ratio is not None and not self.max_ppl_ratio > 1:
            raise InputError(f"a perplexity ratio of {self.max_ppl_ratio}; it must be above 1, such as 1.02")
        if not 0 < self.learning_rate <= HIGHEST_LEARNING_RATE:
            raise InputError(
                f"a learning rate of {self.learning_rate:g}; above 0 and up to {HIGHEST_LEARNING_RATE:g} is possible",
                fix=f"leave --learning-rate out ({LEARNING_RATE:g}), or give one such as 1e-3",
            )
        if self.uniform and (self.density is None or self.selector == "auto" or len(self.sketches) > 1):
            raise InputError(
                "the same density in all layers needs a density and one kind of selector",
                fix="add --density and --selector, and for sketches one --bits",
            )

        if self.values == "leading" and self.lookahead:
            raise InputError(
                "sketches that look ahead know no values of their layer",
                fix="leave --values or --lookahead out",
            )
        if self.learn == "sizes" and self.hidden != "linear":
            raise InputError(
                "sizes are learned by linear predictors", fix="leave --hidden out, or add --learn labels"
            )
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        """Raise `InputError` for an option that nothing in such a training would read."""
        predictors = "low-rank predictors, of which this training has none"
        unused = {
            "--bits": self.bits is not None and not self.uses_sketches and "sketches",
            "--values": self.values != "exact" and not self.uses_sketches and "sketches",
            "--rank": self.rank is not None
            and self.selector in ("sketch", "threshold")
            and "--selector low_rank or auto",
            "--heads-rank": self.heads_rank != DEFAULT_HEADS_RANK
            and self.heads_density is None
            and "--heads-density",
            "--kv-policy": self.kv_policy != "write" and self.heads_density is None and "--heads-density",
            "--tokens": self.tokens is not None and not self.targets and predictors,
            "--hidden": self.hidden != "linear" and not self.targets and predictors,
            "--learn": self.learn is not None and not self.targets and predictors,
            "--learning-rate": self.learning_rate != LEARNING_RATE
            and ((not self.targets and predictors) or (self.learns == "sizes" and "--learn labels")),
            "--lookahead": self.lookahead
            and not self.uses_sketches
            and not self.targets
            and "sketches and predictors",
        }
        for name, of in unused.items():
            if of:
                instead = f"add {of}" if of.startswith("--") else "choose another --selector"
                raise InputError(f"{name} belongs to {of}", fix=f"leave {name} out, or {instead}")

    @property
    def sketches(self) -> tuple[int, ...]:
        """Bits of the sketches to choose from."""
        if not self.uses_sketches:
            return ()
        return self.bits or (4,)

    @property
    def learns(self) -> LearnName:
        """What low-rank predictors learn."""
        return self.learn or ("sizes" if self.hidden == "linear" else "labels")

    @property
    def target(self) -> float:
        """Density of the labels, and where the search measures."""
        return FIRST_DENSITY if self.density is None else self.density

    @property
    def targets(self) -> tuple[Target, ...]:
        """What low-rank predictors are trained for."""
        found = []
        if self.selector == "low_rank" or (self.selector == "auto" and self.rank is not None):
            found.append(Target("neurons", self.rank or DEFAULT_RANK, self.target))
        if self.heads_density is not None:
            found.append(Target("heads", self.heads_rank, self.heads_density))
        return tuple(found)

    @property
    def uses_sketches(self) -> bool:
        """Whether the model must be held with its leading bits apart."""
        return self.selector in ("sketch", "auto")
