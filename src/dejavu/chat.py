"""Chat templates: a model's jinja2 program that turns messages into a prompt, run in a bounded sandbox.

A template comes with a model file, so it is not trusted. It runs in jinja2's immutable sandbox, and every
loop round, call and produced character is charged to a budget: a hostile template ends in a typed error, soon
and in bounded memory.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dejavu.arguments import refusal
from dejavu.errors import DejavuError, InputError, ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jinja2.parser import Parser
    from jinja2.runtime import Context

_MESSAGE = '{"role": "user", "content": "Hello"}'
"""For messages of errors."""
_MAX_SOURCE = 1 << 18  # characters; the longest templates in use have about 20,000
_MAX_STEPS = 1_000_000  # a loop round is one, a call `_CALL`
_CALL = 4
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


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: jinja2, with the functions and variables that Hugging Face's templates expect.
        bos_token: text of the token that begins texts.
        eos_token: text of the token that ends them.

    Raises:
        ModelFormatError: the source is not a template.
    """

    def __init__(self, source: str, *, bos_token: str | None = None, eos_token: str | None = None) -> None:
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._tokens = {name: token for name, token in tokens.items() if token is not None}
        if len(source) > _MAX_SOURCE:
            raise ModelFormatError(
                f"the chat template has {len(source)} characters; at most {_MAX_SOURCE} are run"
            )
        environment = _Sandbox()
        try:
            tree = _metered(environment.parse(source))
            tree.set_environment(environment)
            code = environment.compile(tree)
            self._template = environment.template_class.from_code(
                environment, code, environment.make_globals(None)
            )
        except (TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            raise _failure(error) from error

    def render(
        self, messages: Iterable[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt for `messages`.

        Args:
            messages: each has a "role" (system, user, assistant, ...) and a "content": text, or a list of parts such as
                ``{"type": "text", "text": "Hello"}``, which become the lines of one text. Beside "tool_calls" there may be
                none.
            add_generation_prompt: end where the assistant's answer begins.
            variables: passed on to the template, for example `tools` or `enable_thinking`.

        Raises:
            InputError: the messages are malformed, or the template refuses them.
            ModelFormatError: the template fails or does not end within its budget.
        """
        plain = _plain_messages(messages)
        reset = _BUDGET.set(_Budget(_MAX_STEPS, _MAX_CHARACTERS + 200 * _size(plain)))
        try:
            return self._template.render(
                messages=plain, add_generation_prompt=add_generation_prompt, **(self._tokens | variables)
            )
        except DejavuError:
            raise
        except Exception as error:
            raise _failure(error) from error
        finally:
            _BUDGET.reset(reset)


def _failure(error: Exception) -> ModelFormatError:
    return ModelFormatError(
        f"the model's chat template fails: {type(error).__name__}: {error}",
        fix="give a prompt instead of messages",
    )


def _plain_messages(messages: object) -> list[dict[str, Any]]:
    """The messages as templates know them: dicts whose content is one text. Refuse malformed ones."""
    if not isinstance(messages, Iterable) or isinstance(messages, (str, bytes, Mapping)):
        raise refusal("messages", messages, f"a list such as [{_MESSAGE}]")
    plain = [_plain_message(f"messages[{i}]", message) for i, message in enumerate(messages)]
    if not plain:
        raise InputError("no messages", fix=f"pass a list such as [{_MESSAGE}]")
    return plain


def _plain_message(name: str, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise refusal(name, message, f"a dict such as {_MESSAGE}")
    plain = dict(message)
    role, content = plain.get("role"), plain.get("content")
    if not isinstance(role, str) or not role:
        raise refusal(f'the "role" of {name}', role, "a name such as system, user or assistant")
    if isinstance(content, str) or (content is None and plain.get("tool_calls")):
        return plain
    if not isinstance(content, (list, tuple)) or not content:
        raise refusal(f'the "content" of {name}', content, "a str, or a list of parts that are text")
    parts = [_part_text(f'part {i} of the "content" of {name}', part) for i, part in enumerate(content)]
    return plain | {"content": "\n".join(parts)}  # as vLLM joins them


def _part_text(name: str, part: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise refusal(name, part, 'text, such as {"type": "text", "text": "Hello"}')
    return text


def _size(messages: list[dict[str, Any]]) -> int:
    """Characters of JSON."""
    try:
        return len(json.dumps(messages))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the messages are not plain values: {error}") from error


class _Budget:
    def __init__(self, steps: int, characters: int) -> None:
        self.steps = steps
        self.characters = characters

    def step(self, steps: int = 1) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise SecurityError("too many loop rounds and calls")

    def allow(self, characters: float) -> None:
        """Refuse before something so large is made."""
        if characters > self.characters:
            raise SecurityError("too much text")

    def charge(self, value: object) -> None:
        if isinstance(value, (str, bytes, list, tuple, dict)):
            self.allow(len(value))
            self.characters -= len(value)


_BUDGET: ContextVar[_Budget] = ContextVar("dejavu_chat_budget")


def _metered(tree: nodes.Template) -> nodes.Template:
    """Pass what loops go through, and all that is shown or joined, through filters that charge the budget."""
    for node in list(tree.find_all((nodes.For, nodes.Output, nodes.Concat))):
        if isinstance(node, nodes.For):
            node.iter = _filtered(node.iter, "_rounds")
        elif isinstance(node, (nodes.Output, nodes.Concat)):
            node.nodes = [_filtered(part, "_shown") for part in node.nodes]
    return tree


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    if isinstance(node, nodes.TemplateData):
        node = nodes.Const(node.data, lineno=node.lineno)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's text for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Keep the body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters |= {"tojson": _tojson, "replace": _replace, "indent": _indent, "join": self._join}
        self.filters = {name: _charged(f) for name, f in self.filters.items() if name not in _UNUSED_FILTERS}
        self.filters |= {"_rounds": _rounds, "_shown": _shown}
        self.globals = {
            "range": self.globals["range"],
            "namespace": self.globals["namespace"],
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
        return attr not in _GROWING_METHODS and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.step(_CALL)
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
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


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
