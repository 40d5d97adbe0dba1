"""Chat templates: a model's jinja2 program that turns messages into a prompt, run in a bounded sandbox.

A template comes with a model file, so it is not trusted: a hostile one ends in a typed error, soon and in bounded memory
(`dejavu.sandbox`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import TemplateError
from jinja2.meta import find_undeclared_variables

from dejavu.arguments import refusal
from dejavu.errors import DejavuError, InputError, ModelFormatError
from dejavu.sandbox import Sandbox, budget, meter

WITHOUT_TEMPLATE = (
    "give a prompt instead of messages (generate or stream; on the command line: dejavu generate --raw)"
)
"""What can be done where no chat template renders the messages."""
_MESSAGE = '{"role": "user", "content": "Hello"}'
"""For messages of errors."""
_MAX_SOURCE = 1 << 18  # characters; the longest templates in use have about 20,000
_ANY = frozenset(("tools", "documents"))
"""Variables that transformers gives to every template."""


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: jinja2, with the functions and variables that Hugging Face's templates expect.
        bos_token: text of the token that begins texts.
        eos_token: text of the token that ends them.

    Attributes:
        variables: names that the source uses and does not set.

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
        environment = Sandbox()
        try:
            tree = environment.parse(source)
            self.variables = find_undeclared_variables(tree) - environment.globals.keys()
            meter(tree)
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
            variables: passed on to the template, for example `enable_thinking`; those that it does not use are refused,
                but for `tools` and `documents`, which any template may be given and are None otherwise.

        Raises:
            InputError: the messages are malformed, the template refuses them, or it has no such variable.
            ModelFormatError: the template fails or does not end within its budget.
        """
        plain = _plain_messages(messages)
        if unknown := sorted(variables.keys() - self.variables - _ANY):
            known = sorted((self.variables | _ANY) - {"messages", "add_generation_prompt", *self._tokens})
            raise InputError(
                f"the chat template has no variable {unknown[0]}", fix=f"it takes: {', '.join(known)}"
            )
        values = dict.fromkeys(_ANY) | self._tokens | variables
        try:
            with budget(_size(plain)):
                return self._template.render(
                    messages=plain, add_generation_prompt=add_generation_prompt, **values
                )
        except DejavuError:
            raise
        except Exception as error:
            raise _failure(error) from error


def _failure(error: Exception) -> ModelFormatError:
    return ModelFormatError(
        f"the model's chat template fails: {type(error).__name__}: {error}",
        fix=WITHOUT_TEMPLATE,
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
