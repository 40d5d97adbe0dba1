"""Token ids of what is scored.

A context and its continuation are encoded as lm-evaluation-harness does it: white space that ends the context is moved to
the front of the continuation; the context alone gives its n tokens, context and continuation together give all of them, and
what comes after the first n belongs to the continuation. BOS is put in front where the tokenizer begins texts with it and
the context does not yet, as a rendered chat may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dejavu.tokenizer import Tokenizer

SkipReason = Literal["too long", "no tokens"]
"""Why an item is not scored: it does not fit into the context; a prompt or a continuation has no tokens of its own."""


@dataclass(frozen=True)
class Prompt:
    """A context and what may follow it, as token ids. None of them is empty."""

    context: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    """Of a prompt to generate from there is none."""

    @property
    def tokens(self) -> int:
        """Number of tokens that scoring feeds: the context once, targets but for their last tokens."""
        return len(self.context) + sum(len(target) - 1 for target in self.targets)


def text_prefix(tokenizer: Tokenizer) -> tuple[int, ...]:
    """BOS, if the tokenizer begins texts with it, or nothing."""
    special = tokenizer.encode("", add_special=True)
    return tuple(special[:1]) if special[:1] == [tokenizer.bos_id] else ()


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a context and its continuation (see the module); a context of no tokens becomes BOS, or EOS."""
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    first = tokenizer.encode(context, add_special=False)
    whole = tokenizer.encode(context + continuation, add_special=False)
    return lead_in(tokenizer, first), tuple(whole[len(first) :])


def lead_in(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[int, ...]:
    """`tokens` with BOS in front, where it belongs there and is not yet; no tokens: BOS or EOS, whichever there is."""
    prefix = text_prefix(tokenizer)
    ids = tuple(tokens) if prefix and prefix == tuple(tokens[:1]) else (*prefix, *tokens)
    known = [i for i in (tokenizer.bos_id, *tokenizer.eos_ids) if i is not None]
    return ids or tuple(known[:1])


def encode_item(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], max_context: int
) -> list[Prompt] | SkipReason:
    """Prompts that hold the pairs in their order; pairs of one context that follow each other share a prompt."""
    prompts: list[Prompt] = []
    for context, continuation in pairs:
        start, target = encode_pair(tokenizer, context, continuation)
        if not start or not target:
            return "no tokens"
        if len(start) + len(target) - 1 > max_context:
            return "too long"
        if prompts and prompts[-1].context == start:
            prompts[-1] = Prompt(start, (*prompts[-1].targets, target))
        else:
            prompts.append(Prompt(start, (target,)))
    return prompts


def encode_generation(
    tokenizer: Tokenizer, prompt: str, max_context: int, max_tokens: int
) -> list[Prompt] | SkipReason:
    """The one prompt as `LLM.generate` feeds it; too long where `max_tokens` tokens do not fit behind it."""
    tokens = tokenizer.encode_prompt(prompt)
    if not tokens:
        return "no tokens"
    return "too long" if len(tokens) + max_tokens > max_context else [Prompt(tuple(tokens), ())]
