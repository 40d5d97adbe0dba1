"""Chat, and what a conversation keeps between its turns."""

from __future__ import annotations

import pytest

from dejavu.errors import InputError
from dejavu.sampling import SamplingParams
from scripted import GREEDY, chat, scripted


def test_chat_renders_the_template() -> None:
    llm, _ = scripted({"user:hat<|end|>assistant:": "mat<|end|>"})
    result = llm.chat(chat("hat"), GREEDY)
    assert (result.prompt, result.text) == ("user:hat<|end|>assistant:", "mat")
    pieces = list(llm.stream_chat(chat("hat"), GREEDY))
    assert "".join(piece.text for piece in pieces) == "mat"


def test_messages_may_come_from_an_iterator() -> None:
    llm, _ = scripted()
    assert llm.render_chat(iter(chat("hat"))) == "user:hat<|end|>assistant:"
    expected = llm.chat(chat("hat"), GREEDY)
    assert llm.chat(iter(chat("hat")), GREEDY).completions == expected.completions
    pieces = llm.stream_chat(iter(chat("hat")), GREEDY)
    assert "".join(piece.text for piece in pieces) == expected.text


def test_conversation_computes_only_what_is_new() -> None:
    llm, executor = scripted({"user:hat<|end|>assistant:": "mat sat<|end|>"})
    conversation = llm.conversation()
    first = llm.chat(chat("hat"), GREEDY, conversation=conversation)
    assert first.usage.cached_tokens == 0
    messages = chat("hat", first.text, "the cat")
    executor.prefilled.clear()
    second = llm.chat(messages, GREEDY, conversation=conversation)
    # all of the first prompt and of its answer but the end token, which was never fed
    assert second.usage.cached_tokens == first.usage.total_tokens - 1
    assert executor.prefilled == [second.usage.prompt_tokens - second.usage.cached_tokens]
    assert second.timings.prefill_tokens == executor.prefilled[0]
    assert second.completions == llm.chat(messages, GREEDY).completions


def test_conversation_with_another_history() -> None:
    llm, _ = scripted()
    conversation = llm.conversation()
    for messages in (
        chat("the cat"),
        chat("the hat"),
        chat("x"),
        chat("the hat", "mat", "sat"),
        chat("the hat"),
    ):
        for n in (1, 2):
            params = SamplingParams(seed=1, n=n, max_tokens=6)
            found = llm.chat(messages, params, conversation=conversation)
            assert found.completions == llm.chat(messages, params).completions
    again = llm.chat(chat("the hat"), params, conversation=conversation)
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1  # the last token's logits are needed


@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_conversation_after_interruptions(stop_at: int) -> None:
    """Neither a closed stream nor Ctrl-C in the executor (whose cache then holds too much) confuses it."""
    llm, executor = scripted()
    conversation = llm.conversation()
    stream = llm.stream_chat(chat("the cat"), GREEDY, conversation=conversation)
    for _ in range(stop_at):
        next(stream)
    stream.close()
    executor.interrupt_after = stop_at
    with pytest.raises(KeyboardInterrupt):
        llm.chat(chat("the hat"), GREEDY, conversation=conversation)
    messages = chat("the hat", "mat", "sat")
    found = llm.chat(messages, GREEDY, conversation=conversation)
    assert found.completions == llm.chat(messages, GREEDY).completions
    assert found.usage.cached_tokens > 0


def test_a_turn_begun_while_another_is_open() -> None:
    llm, _ = scripted()
    conversation = llm.conversation()
    stream = llm.stream_chat(chat("the cat"), GREEDY, conversation=conversation)
    next(stream)
    other = llm.chat(chat("the hat"), GREEDY, conversation=conversation)
    assert other.completions == llm.chat(chat("the hat"), GREEDY).completions
    last = list(stream)[-1].generation
    assert last is not None
    assert last.completions == llm.chat(chat("the cat"), GREEDY).completions


def test_a_conversation_that_fills_the_context() -> None:
    llm, _ = scripted(context=20)
    with pytest.raises(InputError, match="leave out the oldest") as caught:
        llm.chat(chat("the cat " * 99), GREEDY, conversation=llm.conversation())
    assert "larger context" not in str(caught.value)
    with pytest.raises(InputError, match="shorten the prompt to 19 tokens"):
        llm.chat(chat("the cat " * 99), GREEDY)
