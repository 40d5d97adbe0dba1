"""What is being generated: a request (one prompt), its sequences (one per completion), conversations."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dejavu.detokenizer import Detokenizer
from dejavu.outputs import Completion, Generation, StreamEvent, Timings, Usage
from dejavu.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dejavu.executor import Cache
    from dejavu.outputs import FinishReason, TokenLogprobs
    from dejavu.sampling import SamplingParams
    from dejavu.tokenizer import Tokenizer


class Conversation:
    """Keeps the KV cache between the turns of a chat, so that only what is new is computed.

    Made by `LLM.conversation`; belongs to that LLM. Passing other messages than before is allowed: what the
    new prompt has in common with the tokens held is kept, the rest is forgotten.
    """

    def __init__(self, new_cache: Callable[[], Cache]) -> None:
        self.new_cache = new_cache
        self.tokens: list[int] = []
        """What the cache holds."""
        self.cache: Cache | None = None

    def take(self, prompt: Sequence[int]) -> tuple[Cache, int]:
        """Hand out the cache, cut to what it has in common with `prompt` (not all of it), and that length.

        Until it is given back, the conversation holds nothing.
        """
        cache, tokens = self.cache or self.new_cache(), self.tokens
        self.cache, self.tokens = None, []
        common = 0
        while common < min(len(prompt) - 1, len(tokens)) and prompt[common] == tokens[common]:
            common += 1
        cache.truncate(common)
        return cache, common

    def give_back(self, cache: Cache, tokens: list[int]) -> None:
        """Keep `cache`, of which the first ``len(tokens)`` positions hold `tokens`."""
        self.cache, self.tokens = cache, tokens


class Request:
    """One prompt: its cache, and what comes of it.

    Args:
        prompt: the text, for the result.
        token_ids: the prompt.
        params: how to sample; `params.n` sequences are made.
        room: most tokens that a completion may have, within the context.
        stop_ids: tokens that end a completion.
        conversation: lends the cache.
    """

    def __init__(
        self,
        prompt: str,
        token_ids: Sequence[int],
        params: SamplingParams,
        *,
        room: int,
        stop_ids: frozenset[int],
        tokenizer: Tokenizer,
        vocab_size: int,
        load_s: float,
        conversation: Conversation | None = None,
    ) -> None:
        self.prompt = prompt
        self.token_ids = tuple(token_ids)
        self.params = params
        self.limit = min(params.max_tokens or room, room)
        self.stop_ids = stop_ids
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.conversation = conversation
        self.sequences = [Running(self, index) for index in range(params.n)]

        self.cache: Cache | None = None
        self.held: list[int] = []
        """Tokens that `cache` surely holds (a call that was interrupted may have written more)."""
        self.logits: NDArray[np.float32] | None = None
        """[vocab] after the prompt, until every sequence has sampled its first token from it."""
        self.cached = 0
        self.prefill_s = 0.0
        self._load_s = load_s
        self._started = time.perf_counter()
        self._first_at = self._last_at = self._started

    def note_token(self) -> None:
        """Take the time of a token that was just chosen."""
        self._last_at = time.perf_counter()
        if self._first_at == self._started:
            self._first_at = self._last_at

    @property
    def finished(self) -> bool:
        """Whether all sequences are."""
        return all(sequence.completion is not None for sequence in self.sequences)

    def release(self) -> None:
        """Let go of the cache, and give a lent one back."""
        if self.conversation is not None and self.cache is not None:
            self.conversation.give_back(self.cache, self.held)
        self.cache = self.logits = None

    def result(self) -> Generation:
        """The whole result; all sequences must be finished."""
        completions = tuple(s.completion for s in self.sequences if s.completion is not None)
        made = sum(len(completion.token_ids) for completion in completions)
        return Generation(
            self.prompt,
            self.token_ids,
            completions,
            Usage(len(self.token_ids), made, self.cached),
            Timings(
                load_s=self._load_s,
                ttft_s=self._first_at - self._started,
                prefill_s=self.prefill_s,
                prefill_tokens=len(self.token_ids) - self.cached,
                decode_s=self._last_at - self._first_at,
                decode_tokens=made - len(completions),
            ),
        )


class Running:
    """One completion while it is being generated."""

    cache: Cache
    """From `start` to the end."""

    def __init__(self, request: Request, index: int) -> None:
        params = request.params
        self.request = request
        self.index = index
        self.token_ids: list[int] = []
        self.completion: Completion | None = None
        """Set when it has ended."""
        self._logprobs: list[TokenLogprobs] = []
        self._text: list[str] = []
        self._sampler = Sampler(
            params,
            vocab_size=request.vocab_size,
            prompt_token_ids=request.token_ids,
            stop_token_ids=request.stop_ids,
            index=index,
        )
        self._detokenizer = Detokenizer(
            request.tokenizer,
            stop=params.stop,
            include_stop=params.include_stop_str_in_output,
            skip_special=params.skip_special_tokens,
        )

    def start(self) -> NDArray[np.float32]:
        """Take a cache that holds the prompt (the last sequence: the request's own). Returns its logits."""
        request = self.request
        if request.cache is None or request.logits is None:
            raise RuntimeError("the prompt has not been computed")
        last = self.index == request.params.n - 1
        logits = request.logits
        self.cache = request.cache if last else request.cache.fork()
        if last:
            request.logits = None
        return logits

    def note_fed(self) -> None:
        """The last token is now in the cache."""
        if self.cache is self.request.cache:
            self.request.held.append(self.token_ids[-1])

    def accept(self, logits: NDArray[np.float32]) -> StreamEvent:
        """Choose the next token from `logits` [vocab], and end the completion where it says so."""
        request, params = self.request, self.request.params
        sampled = self._sampler.sample(logits)
        request.note_token()
        token = sampled.token_id
        self.token_ids.append(token)
        if sampled.logprobs is not None:
            self._logprobs.append(sampled.logprobs)

        ended = token in request.stop_ids
        text = ""
        if not ended or params.include_stop_str_in_output:
            text = self._detokenizer.push(token, may_stop=len(self.token_ids) > params.min_tokens)
        reason: FinishReason | None = None
        if ended or self._detokenizer.stopped is not None:
            reason = "stop"
        elif len(self.token_ids) >= request.limit:
            reason = "length"
        if reason is not None:
            text += self._detokenizer.finish()
        self._text.append(text)
        logprobs = (sampled.logprobs,) if sampled.logprobs is not None else None
        if reason is not None:
            self._finish(reason, token if token in params.stop_token_ids else None)
        result = request.result() if request.finished else None
        return StreamEvent(self.index, text, (token,), logprobs, reason, result)

    def _finish(self, reason: FinishReason, stop_token: int | None) -> None:
        self.completion = Completion(
            index=self.index,
            text="".join(self._text),
            token_ids=tuple(self.token_ids),
            finish_reason=reason,
            stop_reason=stop_token if self._detokenizer.stopped is None else self._detokenizer.stopped,
            logprobs=tuple(self._logprobs) if self.request.params.logprobs is not None else None,
        )
        del self.cache
        if self.request.finished:
            self.request.release()
