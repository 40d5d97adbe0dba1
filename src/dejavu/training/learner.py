"""`Learner`: what learns low-rank predictors from batches of text, and how it is to do that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dejavu.plan import LowRank, Products
    from dejavu.training.examples import Target
    from dejavu.training.inputs import Block
    from dejavu.training.stream import Piece

    Array = NDArray[np.float32]
    Predictor = LowRank | Products

LearnName = Literal["sizes", "labels"]


@dataclass(frozen=True)
class LowRankOptions:
    """How predictors are trained.

    Attributes:
        targets: neurons, heads or both, with rank and target density.
        tokens: how many are learned from; more than the text has means several times through it.
        learn: "sizes": how large what a neuron or head gives is, in closed form (`SizeLearner`); "labels": whether it is
            active (`LabelLearner`).
        seed: of the initial values; the order of the text is the stream's.
        hidden: the middle layer's activation.
        lookahead: distance of the input.
        learning_rate: at the start.
    """

    targets: tuple[Target, ...]
    tokens: int
    learn: LearnName = "sizes"
    seed: int = 0
    hidden: Literal["linear", "relu"] = "linear"
    lookahead: int = 0
    learning_rate: float = 2e-3


class Learner(Protocol):
    """Predictors of all layers, in the making."""

    steps: int
    """Batches that were learned from."""

    def step(self, batch: Sequence[Piece], done: float) -> tuple[float, ...]:
        """Learn from one batch, `done` being the share of the training before it. Returns the loss of each predictor.

        A loss that is not finite ends the training: `arrays` may hold part of the batch.
        """

    def predictors(self) -> dict[Block, list[Predictor]]:
        """As plans hold them, picking the target density."""

    def arrays(self) -> dict[str, Array]:
        """All that another one needs to go on from here."""
