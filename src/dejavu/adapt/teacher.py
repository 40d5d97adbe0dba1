"""`Teacher`: another model than the one that learns, to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dejavu.errors import InputError
from dejavu.models.delta import DeltaWeights
from dejavu.models.lora import LoraWeights
from dejavu.models.tensors import tensor_shapes

if TYPE_CHECKING:
    from dejavu.models.loading import OpenModel
    from dejavu.tokenizer import Tokenizer


@dataclass(frozen=True)
class Teacher:
    """A model to learn from."""

    name: str
    """As the user named it."""
    opened: OpenModel
    tokenizer: Tokenizer

    def check_fits(self, model: OpenModel, tokenizer: Tokenizer) -> None:
        """Raise `InputError` unless it is of the shape of `model`, and has the tokens of `tokenizer`."""
        theirs, ours = tensor_shapes(self.opened.config), tensor_shapes(model.config)
        differ = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
        if differ:
            name = differ[0]
            raise InputError(
                f"the teacher {self.name} has another shape: {name} is {theirs.get(name, 'not there')}, "
                f"the model's is {ours.get(name, 'not there')}",
                fix="take as --teacher the model that this one was adapted from",
            )
        if self.tokenizer.vocabulary != tokenizer.vocabulary:
            raise InputError(
                f"the teacher {self.name} has other tokens",
                fix="take as --teacher the model that this one was adapted from",
            )


def check_whole(name: str, opened: OpenModel) -> None:
    """Raise `InputError` for a delta or an adapter."""
    if isinstance(opened.weights, DeltaWeights | LoraWeights):  # `opened.path` is that of the base
        raise InputError(
            f"{name} is a change to another model; a whole one is needed",
            fix=f"merge it with its base: dejavu convert {name} -o WHOLE",
        )
