"""Typed reading of the options of a model file (``config.json`` or GGUF metadata)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn, cast

from dejavu.errors import ModelFormatError, UnsupportedModelError
from dejavu.models.config import THRESHOLDED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dejavu.models.config import Activation, ModelConfig

MAX_LAYERS = 4096
"""A file that claims more layers is refused before anything is sized by that number."""

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "relu2": "relu2",
    "fatrelu": "fatrelu",
    "shifted_relu": "shifted_relu",
    "drelu": "drelu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Hugging Face's name -> ours. `gelu_new`, `gelu_fast` and `gelu_pytorch_tanh` are one formula."""

_WRITTEN = {
    ours: theirs for theirs, ours in ACTIVATIONS.items() if theirs not in ("swish", "gelu_new", "gelu_fast")
}


def activation_options(config: ModelConfig, name: str) -> dict[str, object]:
    """What `Options.activation` reads."""
    values: dict[str, object] = {name: _WRITTEN[config.activation]}
    return (
        values | {name + "_param": config.activation_threshold}
        if config.activation in THRESHOLDED
        else values
    )


class Options:
    """Options of one model, read one by one with their type checked.

    Args:
        values: what the file says.
        where: the file's name for error messages.
        defaults: values of options that the file leaves out.
        prefix: put before every name (GGUF: "llama.").

    Readers raise `ModelFormatError` for a missing option or a wrong type.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        *,
        where: str,
        defaults: Mapping[str, object] | None = None,
        prefix: str = "",
    ) -> None:
        self._values = {**{prefix + key: value for key, value in (defaults or {}).items()}, **values}
        self._where = where
        self._prefix = prefix
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the option is there and not null."""
        return self._values.get(self._prefix + name) is not None

    def integer(self, name: str, if_none: int | None = None, *, at_most: int = 2**31 - 1) -> int:
        """A whole number from 0 to `at_most`; `if_none` stands in for an option that is absent or null."""
        value = self._get(name, if_none)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= at_most:
            self._wrong(name, value, f"a whole number from 0 to {at_most}")
        return value

    def number(self, name: str, if_none: float | None = None) -> float:
        """A finite number; `if_none` as in `integer`."""
        value = self._get(name, if_none)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
            self._wrong(name, value, "a finite number")
        try:
            return float(value)
        except OverflowError:  # JSON's whole numbers have no limit
            self._wrong(name, value, "a finite number")

    def positive(self, name: str, if_none: float | None = None) -> float:
        """A finite number above zero; `if_none` as in `integer`."""
        value = self.number(name, if_none)
        if value <= 0:
            self._wrong(name, value, "a number above zero")
        return value

    def boolean(self, name: str, *, if_none: bool = False) -> bool:
        """True or false; `if_none` as in `integer`."""
        value = self._get(name, if_none)
        if not isinstance(value, bool):
            self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, if_none: str | None = None) -> str:
        """A string; `if_none` as in `integer`."""
        value = self._get(name, if_none)
        if not isinstance(value, str):
            self._wrong(name, value, "a string")
        return value

    def group(self, name: str) -> dict[str, object]:
        """An object; empty if it is absent or null."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            self._wrong(name, value, "an object")
        return cast("dict[str, object]", value)

    def texts(self, name: str) -> Sequence[str] | None:
        """A list of strings; None if it is absent or null."""
        if not self.has(name):
            return None
        value = self._get(name, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._wrong(name, value, "a list of strings")
        return cast("list[str]", value)

    def ids(self, *names: str) -> tuple[int, ...]:
        """Token ids of several options, each absent, null, a number or a list of numbers; without repeats."""
        found: dict[int, None] = {}
        for name in names:
            value = self._get(name, []) if self.has(name) else []
            for item in value if isinstance(value, list) else [value]:
                if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < 2**31:
                    self._wrong(name, value, "a token id or a list of them")
                found[item] = None
        return tuple(found)

    def layers(self, name: str) -> int:
        """Number of layers, at most `MAX_LAYERS`."""
        return self.integer(name, at_most=MAX_LAYERS)

    def windows(self, n_layers: int, default: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which layers have a sliding window: by `layer_types`, else `default`."""
        kinds = self.texts("layer_types")
        if kinds is None:
            return default
        if len(kinds) != n_layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
            self.refuse("layer_types", f"{n_layers} of full_attention or sliding_attention are supported")
        return tuple(kind == "sliding_attention" for kind in kinds)

    def activation(self, name: str, if_none: str | None = None) -> dict[str, Any]:
        """`ModelConfig`'s `activation` and, by the option `name` + "_param", its threshold.

        One of `ACTIVATIONS`; others raise `UnsupportedModelError`.
        """
        value = self.text(name, if_none)
        if value not in ACTIVATIONS:
            self.refuse(name, f"supported are {', '.join(ACTIVATIONS)}")
        kind = ACTIVATIONS[value]
        threshold = self.number(name + "_param", 0.0) if kind in THRESHOLDED else 0.0
        return {"activation": kind, "activation_threshold": threshold}

    def require(self, name: str, *neutral: object) -> None:
        """Refuse the model unless the option is absent, null or one of `neutral`."""
        value = self._get(name, None) if self.has(name) else None
        if value is not None and value not in neutral:
            allowed = " or ".join(repr(item) for item in neutral) or "absent"
            self.refuse(name, f"only {allowed} is supported")

    def skip(self, *names: str) -> None:
        """Let options be anything, also for `refuse_unread`."""
        self._read.update(self._prefix + name for name in names)

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise `UnsupportedModelError` about an option."""
        value = self._values.get(self._prefix + name)
        raise UnsupportedModelError(f"{self._where}: {self._prefix}{name} is {value!r}; {why}")

    def refuse_unread(self) -> None:
        """Refuse options under the prefix that nobody read, unless they are false, zero or empty."""
        for key, value in self._values.items():
            if key.startswith(self._prefix) and key not in self._read and value:
                raise UnsupportedModelError(f"{self._where}: option {key} = {value!r} is not supported")

    def _get(self, name: str, if_none: object) -> object:
        key = self._prefix + name
        self._read.add(key)
        value = self._values.get(key)
        if value is not None:
            return value
        if if_none is None:
            raise ModelFormatError(f"{self._where}: option {key} is missing")
        return if_none

    def _wrong(self, name: str, value: object, wanted: str) -> NoReturn:
        raise ModelFormatError(f"{self._where}: {self._prefix}{name} is {value!r}; {wanted} is needed")
