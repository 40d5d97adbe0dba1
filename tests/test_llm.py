"""`LLM`: batches, stops, streams and errors, on a scripted executor."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu.errors import InputError, ModelFormatError, UnsupportedModelError
from dejavu.llm import CHUNK, LLM
from dejavu.models.config import ModelConfig
from dejavu.sampling import SamplingParams
from dejavu.tokenizer import Tokenizer
from scripted import END, GREEDY, PROMPTS, TEMPLATE, TOKENIZER, VOCAB, ScriptedExecutor, alone, chat, scripted
from tiny_tokenizer import byte_level_metadata


@pytest.mark.parametrize("max_batch", [1, 2, 3, 8])
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(seed=3, top_p=0.8, max_tokens=9, n=3)])
def test_batched_is_what_each_prompt_gives_alone(max_batch: int, params: SamplingParams) -> None:
    llm, executor = scripted({"mat": "x<|end|>"}, max_batch=max_batch)
    for prompt, together in zip(PROMPTS, llm.generate(PROMPTS, params), strict=True):
        single = alone(prompt, params, answers={"mat": "x<|end|>"})
        assert together.completions == single.completions
        assert (together.prompt, together.usage) == (prompt, single.usage)
        assert [c.index for c in together.completions] == list(range(params.n))
    assert max(executor.batches) == min(max_batch, len(PROMPTS) * params.n)


def test_sequences_that_end_leave_the_batch() -> None:
    llm, executor = scripted({"the": "a<|end|>", "cat": "aaaa<|end|>", "hat": "aa<|end|>"})
    results = llm.generate(["the", "cat", "hat"], GREEDY)
    assert [r.text for r in results] == ["a", "aaaa", "aa"]
    assert executor.batches == [3, 2, 1, 1]


def test_the_prompt_is_computed_once_for_all_completions() -> None:
    llm, executor = scripted()
    result = llm.generate("the cat sat", SamplingParams(n=5, seed=1, max_tokens=7))
    assert executor.prefilled == [len(TOKENIZER.encode("the cat sat"))]
    assert executor.batches == [5] * 6
    assert len({c.token_ids for c in result.completions}) == 5
    one = alone("the cat sat", SamplingParams(seed=1, max_tokens=7))
    assert one.completions[0] == result.completions[0]
    assert result.usage.completion_tokens == 35
    assert result.timings.decode_tokens == 30


def test_long_prompts_are_computed_in_chunks() -> None:
    llm, executor = scripted()
    prompt = "a " * (CHUNK + 10)
    count = len(TOKENIZER.encode(prompt))
    llm.generate(prompt, GREEDY)
    assert executor.prefilled == [CHUNK] * (count // CHUNK) + [count % CHUNK]


def test_ends_of_sequences() -> None:
    answers = {"the": "cat sat<|end|> mat"}
    (done,) = alone("the", GREEDY, answers=answers).completions
    assert (done.text, done.finish_reason, done.stop_reason) == ("cat sat", "stop", None)
    assert done.token_ids[-1] == END
    on = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    (done,) = alone("the", on, answers=answers).completions
    assert done.text.startswith("cat sat mat")
    assert done.finish_reason == "length"
    shown = SamplingParams(temperature=0, include_stop_str_in_output=True, skip_special_tokens=False)
    assert alone("the", shown, answers=answers).text == "cat sat<|end|>"


def test_stop_token_ids() -> None:
    (token,) = TOKENIZER.encode(" sat")
    params = SamplingParams(temperature=0, stop_token_ids=[token])
    (done,) = alone("the", params, answers={"the": "cat sat mat"}).completions
    assert (done.text, done.finish_reason, done.stop_reason) == ("cat", "stop", token)
    included = SamplingParams(temperature=0, stop_token_ids=[token], include_stop_str_in_output=True)
    assert alone("the", included, answers={"the": "cat sat mat"}).text == "cat sat"


@pytest.mark.parametrize("include", [False, True])
def test_stop_strings_across_tokens(include: bool) -> None:
    params = SamplingParams(temperature=0, stop=["t s", "never"], include_stop_str_in_output=include)
    (done,) = alone("the", params, answers={"the": "cat sat mat"}).completions
    assert (done.text, done.finish_reason, done.stop_reason) == ("cat s" if include else "ca", "stop", "t s")


def test_min_tokens_puts_off_every_stop() -> None:
    answers = {"the": "a!b<|end|>"}
    params = SamplingParams(temperature=0, min_tokens=8, max_tokens=20, stop=["!"])
    (done,) = alone("the", params, answers=answers).completions
    assert len(done.token_ids) >= 8
    assert END not in done.token_ids[:8]
    assert done.text.startswith("a!b")


def test_max_tokens_none_fills_the_context() -> None:
    result = alone("the cat", SamplingParams(temperature=0, max_tokens=None), context=40)
    assert result.usage.total_tokens == 40
    assert result.completions[0].finish_reason == "length"
    limited = alone("the cat", SamplingParams(temperature=0, max_tokens=1000), context=40)
    assert limited.completions == result.completions


@given(st.integers(0, 2**31), st.integers(1, 3), st.lists(st.sampled_from(["a", "t", " ", "ca"]), max_size=2))
def test_stream_is_generate_in_pieces(seed: int, n: int, stop: list[str]) -> None:
    params = SamplingParams(seed=seed, n=n, max_tokens=10, stop=stop, logprobs=2)
    expected = alone("the cat", params)
    llm, _ = scripted()
    events = list(llm.stream("the cat", params))
    assert events[-1].generation is not None
    assert events[-1].generation.completions == expected.completions
    assert all(event.generation is None for event in events[:-1])
    for completion in expected.completions:
        mine = [event for event in events if event.index == completion.index]
        assert "".join(event.text for event in mine) == completion.text
        assert tuple(token for event in mine for token in event.token_ids) == completion.token_ids
        assert tuple(x for event in mine for x in event.logprobs or ()) == completion.logprobs
        assert [event.finish_reason for event in mine] == [None] * (len(mine) - 1) + [
            completion.finish_reason
        ]


def test_stream_never_shows_half_a_character() -> None:
    llm, _ = scripted({"the": "naïve 😀😀 中文<|end|>"})
    pieces = [event.text for event in llm.stream("the", SamplingParams(temperature=0))]
    assert "".join(pieces) == "naïve 😀😀 中文"
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_closed_stream_leaves_the_llm_usable() -> None:
    llm, executor = scripted()
    expected = llm.generate("the cat", GREEDY)
    stream = llm.stream("the cat", GREEDY)
    next(stream)
    next(stream)
    stream.close()
    steps = len(executor.batches)
    assert llm.generate("the cat", GREEDY).completions == expected.completions
    assert len(executor.batches) == steps + 11


def test_two_streams_at_once() -> None:
    llm, _ = scripted()
    streams = [llm.stream(prompt, GREEDY) for prompt in PROMPTS[:2]]
    texts = ["", ""]
    for pair in zip(*streams, strict=True):
        texts = [text + event.text for text, event in zip(texts, pair, strict=True)]
    assert texts == [alone(prompt, GREEDY).text for prompt in PROMPTS[:2]]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "empty"), (" the" * 50, "context holds 40"), (3, "must be a str"), (None, "str")],
)
def test_bad_prompts(prompt: Any, message: str) -> None:
    llm, executor = scripted(context=40)
    with pytest.raises(InputError, match=message):
        llm.stream(prompt, GREEDY)
    with pytest.raises(InputError, match=message):
        llm.generate(["the cat", prompt], GREEDY)
    assert executor.prefilled == []


@pytest.mark.parametrize("prompts", [None, 5, b"abc", {"a"}, {"a": 1}])
def test_what_is_no_list_of_prompts(prompts: Any) -> None:
    with pytest.raises(InputError, match=r"prompts is .* a str or a list of them"):
        scripted()[0].generate(prompts, GREEDY)


@pytest.mark.parametrize("params", [{"max_tokens": 3}, {}, 5, 0, "greedy", [GREEDY]])
def test_bad_params(params: Any) -> None:
    llm, _ = scripted()
    for call in (llm.generate, llm.stream, lambda text, bad: llm.chat(chat(text), bad)):
        with pytest.raises(InputError, match=r"params is .* a SamplingParams or None"):
            call("the", params)


def test_params_for_each_prompt() -> None:
    llm, _ = scripted()
    each = [GREEDY, None, SamplingParams(seed=2, max_tokens=3), SamplingParams(seed=1, n=2, max_tokens=5)]
    found = llm.generate(PROMPTS, each)
    for prompt, params, result in zip(PROMPTS, each, found, strict=True):
        if params is not None:  # None draws a seed
            assert result.completions == alone(prompt, params).completions
    with pytest.raises(InputError, match="4 params for 2 prompts"):
        llm.generate(PROMPTS[:2], each)


def test_a_rendered_chat_gets_no_second_bos() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level_metadata(add_bos_token=True))
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    llm = LLM(ScriptedExecutor(), tokenizer)
    asked = llm.chat(chat("the cat"), GREEDY)
    again = llm.generate(llm.render_chat(chat("the cat")), GREEDY)
    assert (again.usage.prompt_tokens, again.text) == (asked.usage.prompt_tokens, asked.text)
    bare = llm.generate("the cat", GREEDY)
    assert bare.usage.prompt_tokens == len(tokenizer.encode("the cat", add_special=False)) + 1


@pytest.mark.parametrize("name", ["temperature", "max_tokens", "stop"])
def test_sampling_is_no_variable_of_a_template(name: str) -> None:
    llm, _ = scripted()
    for call in (llm.chat, llm.stream_chat, llm.render_chat):
        with pytest.raises(InputError, match=f"{name} .* how to sample") as caught:
            call(chat("the"), **{name: 5})
        assert f"SamplingParams({name}=" in str(caught.value.fix)
        with pytest.raises(InputError, match="no variable enable_thinkin"):
            call(chat("the"), enable_thinkin=False)


def test_chats_with_tools_have_a_template_of_their_own() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level_metadata())
    tokenizer.chat_template = TEMPLATE
    tokenizer.named_templates = {"tool_use": "{{ tools | length }}{{ size }} tools", "rag": "{{ documents }}"}
    llm = LLM(ScriptedExecutor(), tokenizer)
    assert (
        llm.render_chat(chat("the"))
        == llm.render_chat(chat("the"), tools=None)
        == "user:the<|end|>assistant:"
    )
    assert llm.render_chat(chat("the"), tools=[{}, {}], size=" small") == "2 small tools"
    assert llm.render_chat(chat("the"), tools=[]) == "0 tools"
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        llm.render_chat(chat("the"))
    assert llm.render_chat(chat("the"), tools=[]) == "0 tools"


def test_prompts_that_begin_with_bos_as_text() -> None:
    """Where the tokenizer adds none, what is there stays."""
    assert TOKENIZER.encode_prompt("<s><s>the") == TOKENIZER.encode("<s><s>the")
    with_bos = Tokenizer.from_gguf(byte_level_metadata(add_bos_token=True))
    assert with_bos.encode_prompt("<s><s>the") == TOKENIZER.encode("<s><s>the")


def test_a_prompt_that_just_fits() -> None:
    count = len(TOKENIZER.encode("the cat sat"))
    assert alone("the cat sat", GREEDY, context=count + 1).usage.completion_tokens == 1
    with pytest.raises(InputError, match="answer included"):
        alone("the cat sat", GREEDY, context=count)


def test_other_errors() -> None:
    llm, executor = scripted()
    with pytest.raises(InputError, match="below the vocabulary size"):
        llm.generate("the", SamplingParams(stop_token_ids=[VOCAB]))
    with pytest.raises(InputError, match="another LLM"):
        llm.chat(chat("hat"), GREEDY, conversation=scripted()[0].conversation())
    with pytest.raises(InputError, match="no chat template"):
        LLM(executor, without_template()).chat(chat("x"))
    for options in (
        {"context": 5000},
        {"context": 1},
        {"max_batch": 0},
        {"context": "9"},
        {"max_batch": None},
    ):
        with pytest.raises(InputError, match="must be a whole number"):
            LLM(executor, TOKENIZER, **options)
    with pytest.raises(InputError, match=r"llm\.conversation"):
        llm.chat(chat("hat"), GREEDY, conversation=5)
    with llm:
        pass
    assert executor.closed
    with pytest.raises(InputError, match="closed"):
        llm.generate("the", GREEDY)


@pytest.mark.parametrize("taken", [0, 1, 2, 5])
def test_a_stream_of_a_closed_llm(taken: int) -> None:
    llm, executor = scripted(max_batch=2)
    stream = llm.stream("the", SamplingParams(seed=1, n=3))
    for _ in range(taken):
        next(stream)
    llm.close()
    calls = len(executor.prefilled), len(executor.batches)
    with pytest.raises(InputError, match="this LLM is closed"):
        list(stream)
    assert calls == (len(executor.prefilled), len(executor.batches))


def test_a_context_without_room_for_an_answer() -> None:
    with pytest.raises(UnsupportedModelError, match="context is 1 token; at least 2"):
        scripted(context=1)


def without_template() -> Tokenizer:
    tokenizer = Tokenizer.from_gguf(byte_level_metadata())
    tokenizer.chat_template = None
    return tokenizer


def test_tokenizer_of_another_model() -> None:
    executor = ScriptedExecutor()
    executor.config = ModelConfig("test", TOKENIZER.vocab_size - 1, 8, 1, 1, 1, 8, 8, 99)
    with pytest.raises(ModelFormatError, match="belongs to this model"):
        LLM(executor, TOKENIZER)


def test_no_prompts() -> None:
    assert scripted()[0].generate([]) == []
