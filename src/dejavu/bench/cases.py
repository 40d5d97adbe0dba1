"""What a benchmark runs: tests, and the settings that they run under."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from dejavu.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dejavu.codecs import Codec
    from dejavu.executor import KvDtype

Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True)
class Setting:
    """How a model is loaded."""

    codec: Codec
    kv_dtype: KvDtype
    threads: int
    plan: str = "off"
    """"off", "auto" or the folder of an access plan."""


@dataclass(frozen=True)
class Test:
    """One thing to time.

    ``pp``: prompt processing, `tokens` tokens of one sequence into an empty cache, in blocks of the length
    that `LLM` uses. ``tg``: token generation, `tokens` decode steps of `batch` sequences, after `depth`
    tokens each.
    """

    kind: Literal["pp", "tg"]
    tokens: int
    batch: int = 1
    depth: int = 0

    @property
    def label(self) -> str:
        """Short name: "pp512", "tg128", "tg128 b8", "tg128 @1024"."""
        batch = f" b{self.batch}" if self.batch > 1 else ""
        depth = f" @{self.depth}" if self.depth else ""
        return f"{self.kind}{self.tokens}{batch}{depth}"


@dataclass(frozen=True)
class Case:
    """A test under a setting."""

    setting: Setting
    test: Test


def parse_sweep(text: str, *, name: str, low: int = 0) -> tuple[int, ...]:
    """Read "512" or "128,512,2048"; repeated values count once.

    Raises:
        InputError: an entry is not a whole number of at least `low`.
    """
    values: dict[int, None] = {}
    for part in text.split(","):
        try:
            value = int(part)
        except ValueError:
            value = low - 1
        if value < low:
            raise InputError(
                f"{name}: {part.strip()!r} is not a whole number from {low}",
                fix=f"write such as {name} 128,512",
            )
        values[value] = None
    return tuple(values)


def parse_choices(text: str, *, name: str, allowed: tuple[Choice, ...]) -> tuple[Choice, ...]:
    """Read "int8" or "bf16,int8"; repeated values count once.

    Raises:
        InputError: an entry is not in `allowed`.
    """
    values: dict[Choice, None] = {}
    for part in text.split(","):
        found = next((choice for choice in allowed if choice == part.strip()), None)
        if found is None:
            raise InputError(f"{name}: {part.strip()!r} is unknown", fix=f"choose from: {', '.join(allowed)}")
        values[found] = None
    return tuple(values)


def make_tests(
    prompts: tuple[int, ...], steps: tuple[int, ...], batches: tuple[int, ...], depths: tuple[int, ...] = (0,)
) -> tuple[Test, ...]:
    """Tests of all lengths; a length of 0 leaves its kind out.

    Raises:
        InputError: no test is left.
    """
    pp = [Test("pp", tokens) for tokens in prompts if tokens]
    tg = [Test("tg", n, batch, depth) for depth in depths for batch in batches for n in steps if n]
    if not pp and not tg:
        raise InputError("nothing to measure: -p and -n are both 0", fix="try -p 512 -n 128")
    return (*pp, *tg)


def make_cases(
    codecs: tuple[Codec, ...],
    kv_dtypes: tuple[KvDtype, ...],
    threads: tuple[int, ...],
    tests: tuple[Test, ...],
    plans: tuple[str, ...] = ("off",),
) -> tuple[Case, ...]:
    """Every test under every setting."""
    settings = [
        Setting(codec, kv, n, plan) for codec in codecs for kv in kv_dtypes for n in threads for plan in plans
    ]
    return tuple(Case(setting, test) for setting in settings for test in tests)


def name_dense(
    cases: Sequence[Case], is_dense: Callable[[Setting], bool]
) -> tuple[tuple[Case, ...], tuple[Setting, ...]]:
    """Cases whose plan turns out to be none as what they are, "off", each once; and the settings that were so.

    "auto" is no plan where the model has none of its own for the codec.
    """
    settings = dict.fromkeys(case.setting for case in cases if case.setting.plan != "off")
    dense = {setting: replace(setting, plan="off") for setting in settings if is_dense(setting)}
    named = (replace(case, setting=dense.get(case.setting, case.setting)) for case in cases)
    return tuple(dict.fromkeys(named)), tuple(dense)
