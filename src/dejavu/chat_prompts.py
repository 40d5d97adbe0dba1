"""`ChatPrompts`: which of a model's chat templates renders a chat, and what it may be given."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dejavu.chat import WITHOUT_TEMPLATE, ChatTemplate
from dejavu.errors import InputError
from dejavu.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dejavu.tokenizer import Tokenizer

WITH_TOOLS = "tool_use"
"""The named template that renders chats with tools, where there is one: Hugging Face's convention."""

_SAMPLING = frozenset(field.name for field in dataclasses.fields(SamplingParams))


class ChatPrompts:
    """The chat templates of `tokenizer`, each compiled when it is first used."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiled: dict[str, ChatTemplate] = {}

    def render(self, messages: Iterable[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt for `messages`; see `ChatTemplate.render`.

        Raises:
            InputError: the model has no chat template, or as there.
            ModelFormatError: as there.
        """
        template = self._template(with_tools=variables.get("tools") is not None)
        if name := next((n for n in variables if n in _SAMPLING and n not in template.variables), None):
            raise InputError(
                f"{name} is no variable of the chat template; it says how to sample",
                fix=f"give it as params: SamplingParams({name}=...)",
            )
        return template.render(messages, **variables)

    def _template(self, *, with_tools: bool) -> ChatTemplate:
        source = self._tokenizer.named_templates.get(WITH_TOOLS) if with_tools else None
        source = source or self._tokenizer.chat_template
        if source is None:
            raise InputError("this model has no chat template", fix=WITHOUT_TEMPLATE)
        if source not in self._compiled:
            tokens = {"bos_token": self._tokenizer.bos_token, "eos_token": self._tokenizer.eos_token}
            self._compiled[source] = ChatTemplate(source, **tokens)
        return self._compiled[source]
