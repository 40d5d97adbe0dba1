"""The bounded jinja2 sandbox that chat templates run in.

Nothing outside can be reached or changed, and every loop round, call and produced character is charged to a budget, which
also ends after some seconds. Values are immutable, so how long a list or dict is as text is known when it is made: one that
holds the same list twice, which holds the same list twice, and so on, is refused there.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import json
import re
import time
from collections.abc import ItemsView, Iterable, KeysView, Mapping, Set, ValuesView
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from dejavu.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jinja2.parser import Parser
    from jinja2.runtime import Context

_MAX_STEPS = 1_000_000  # a loop round is one, a call `_CALL`
_CALL = 4
_MAX_SECONDS = 20.0  # of one rendering: a step can cost nothing, or read a long text
_MAX_CHARACTERS = 1 << 24  # produced in all, besides 200 times those of the messages
_MAX_BITS = 4096  # of whole numbers

_GROWING_METHODS = frozenset(
    ("center", "ljust", "rjust", "zfill", "expandtabs", "translate", "format_map", "encode", "to_bytes")
)
_UNUSED_FILTERS = frozenset(
    (
        "batch",
        "center",
        "filesizeformat",
        "format",
        "pprint",
        "slice",
        "truncate",
        "urlize",
        "wordwrap",
        "xmlattr",
    )
)
_HOSTILE_FORMAT = re.compile(r"\d{4,}|\*|\{[^{}]*\{")  # wide fields, and widths that are arguments
_CONTAINERS = (list, tuple, Mapping, Set, KeysView, ValuesView, ItemsView)


class _Budget:
    def __init__(self, steps: int, characters: int) -> None:
        self.steps = steps
        self.characters = characters
        self.deadline = time.monotonic() + _MAX_SECONDS
        self._weights: dict[
            int, tuple[object, int]
        ] = {}  # by id, which the object beside it keeps from reuse

    def step(self, steps: int = 1) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise SecurityError("too many loop rounds and calls")
        if time.monotonic() > self.deadline:
            raise SecurityError(f"not done after {_MAX_SECONDS:g} seconds")

    def allow(self, characters: float) -> None:
        """Refuse before something so large is made."""
        if characters > self.characters:
            raise SecurityError("too much text")

    def charge(self, value: object) -> None:
        """Pay for a value that was made; refuse a container that is too long as text."""
        if isinstance(value, (str, bytes)):
            self.allow(len(value))
            self.characters -= len(value)
        elif isinstance(value, _CONTAINERS):
            self.allow(self.weight(value))
            self.characters -= len(value)

    def weight(self, value: object) -> int:
        """About the characters of `value` as text: what it holds twice counts twice."""
        if isinstance(value, (str, bytes)):
            return len(value)
        if isinstance(value, int):
            return 1 + value.bit_length() // 3
        if not isinstance(value, _CONTAINERS):
            return 1
        known = self._weights.get(id(value))
        if known is None:
            total = 2
            for part in _parts(value):
                total += 1 + (len(part) if type(part) is str else self.weight(part))
            known = self._weights[id(value)] = value, total
        return known[1]


_BUDGET: ContextVar[_Budget] = ContextVar("dejavu_chat_budget")


@contextlib.contextmanager
def budget(messages: int) -> Iterator[None]:
    """Let templates run, within what is due to messages of so many characters."""
    reset = _BUDGET.set(_Budget(_MAX_STEPS, _MAX_CHARACTERS + 200 * messages))
    try:
        yield
    finally:
        _BUDGET.reset(reset)


def _parts(container: Any) -> Iterable[object]:
    """What a list, a dict or the like holds."""
    return itertools.chain(container, container.values()) if isinstance(container, Mapping) else container


def meter(tree: nodes.Template) -> None:
    """Pass what loops go through, what is shown or joined, and containers that are made, through filters that charge."""
    _Meter().visit(tree)


class _Meter(NodeTransformer):
    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        node = self.generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            node.iter = _filtered(node.iter, "_rounds")
        elif isinstance(node, (nodes.Output, nodes.Concat)):
            node.nodes = [_filtered(part, "_shown") for part in node.nodes]
        elif (
            isinstance(node, (nodes.List, nodes.Tuple, nodes.Dict)) and getattr(node, "ctx", "load") == "load"
        ):
            return _filtered(node, "_made")
        return node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    if isinstance(node, nodes.TemplateData):
        node = nodes.Const(node.data, lineno=node.lineno)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Namespace(Namespace):
    """One whose text does not hold that of its values: these change, so that its length is not known beforehand."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's text for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Keep the body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """Where templates are compiled and run, within a `budget`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters |= {"tojson": _tojson, "replace": _replace, "indent": _indent, "join": self._join}
        self.filters = {name: _charged(f) for name, f in self.filters.items() if name not in _UNUSED_FILTERS}
        self.filters |= {"_rounds": _rounds, "_shown": _shown, "_made": _made}
        self.globals = {
            "range": self.globals["range"],
            "namespace": _Namespace,
            "dict": dict,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def _join(self, values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
        parts = []
        for value in _rounds(values):
            part = str(value if attribute is None else self.getitem(value, attribute))
            _BUDGET.get().charge(part)
            parts.append(part)
        _BUDGET.get().allow(len(str(separator)) * len(parts))
        return str(separator).join(parts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Also no methods that make long texts of short ones."""
        return attr not in _GROWING_METHODS and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Charge for a call and what it returns."""
        budget = _BUDGET.get()
        budget.step(_CALL)
        budget.allow(sum(map(budget.weight, (*args, *kwargs.values()))))  # a macro has them as one list, too
        method = getattr(function, "__wrapped__", function)  # jinja2 wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            if name == "replace":
                return _replace(owner, *args)
            if name == "join":
                return self._join(args[0], owner)
            if name == "format":
                _check_format(owner, owner.count("{"), (*args, *kwargs.values()))
        result = super().call(context, function, *args, **kwargs)
        budget.charge(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Charge for an operation; refuse results that are too large beforehand."""
        budget = _BUDGET.get()
        budget.step()
        if operator == "*":
            for a, b in ((left, right), (right, left)):
                if isinstance(a, (str, bytes, list, tuple)) and isinstance(b, int):
                    budget.allow(len(a) * b)
        if operator == "%" and isinstance(left, str):
            _check_format(str(left), left.count("%"), right if isinstance(right, tuple) else (right,))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_BITS:
                raise SecurityError("too large a number")
        result = super().call_binop(context, operator, left, right)
        budget.charge(result)
        return result


def _charged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps jinja2's marks for functions that want the context
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.step()
        result = function(*args, **kwargs)
        budget.charge(result)
        return result

    return charged


def _rounds(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _BUDGET.get().step()
        yield value


def _made(container: Any) -> Any:
    _BUDGET.get().charge(container)
    return container


def _shown(value: Any) -> str:
    text = str(value)
    _BUDGET.get().charge(text)
    return text


def _replace(text: str, old: str, new: str, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    _BUDGET.get().allow(len(text) + (len(text) / max(len(old), 1) + 1) * len(new))
    result = text.replace(old, new, -1 if count is None else count)
    _BUDGET.get().charge(result)
    return result


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(text)
    _BUDGET.get().allow(len(text) * (width if isinstance(width, int) else len(width)))
    space = " " * width if isinstance(width, int) else width
    lines = text.splitlines(keepends=True)
    return "".join(
        space + line if (i or first) and (blank or line.strip()) else line for i, line in enumerate(lines)
    )


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= indent <= 16:
        raise SecurityError("tojson: indent must be 0 to 16")
    count, depth = _extent(value, {})
    _BUDGET.get().allow(count * ((indent or 0) * depth + sum(map(len, separators or ()))))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _extent(value: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values `value` consists of, and how deep they lie; `known` has those of containers, by id."""
    if not isinstance(value, _CONTAINERS):
        return 1, 1
    if id(value) not in known:
        inside = [_extent(part, known) for part in _parts(value)]
        known[id(value)] = 1 + sum(count for count, _ in inside), 1 + max((d for _, d in inside), default=0)
    return known[id(value)]


def _check_format(text: str, fields: int, values: Iterable[Any]) -> None:
    if _HOSTILE_FORMAT.search(text):
        raise SecurityError("a format with a huge or computed width")
    _BUDGET.get().allow(fields * (1000 + sum(len(str(value)) for value in values)))


def _raise_exception(message: str) -> NoReturn:
    raise InputError(f"the chat template refuses these messages: {message}")


def _strftime_now(template: str) -> str:
    if len(template) > 100 or re.search("%[^a-zA-Z%]", template):
        raise SecurityError("strftime_now: a format with a width or flags")
    return datetime.datetime.now().strftime(template)
