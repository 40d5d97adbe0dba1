"""Typed results of generation: plain frozen values, JSON-able through `to_dict`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length"]
"""`stop`: an end token, stop token or stop string; `length`: max_tokens or the context was reached."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities (nats) at one position, of the raw distribution: before penalties, temperature."""

    token_id: int
    logprob: float
    rank: int
    """1 + the number of tokens that were more likely than the chosen one."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely (token id, logprob), best first; as many as `SamplingParams.logprobs` asked for."""


@dataclass(frozen=True)
class Completion:
    """One of the `n` continuations of a prompt."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    """The stop token id or stop string that ended it; None for an end-of-sequence token or `length`."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One per token of `token_ids`; None unless asked for."""


@dataclass(frozen=True)
class Usage:
    """Token counts. `cached_tokens` of the prompt were already in the KV cache and cost nothing."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one request. Where prompts share a batch, so do they share this time."""

    load_s: float
    """From the call of `LLM.from_pretrained` to its return."""
    ttft_s: float
    """From the start of the request to its first token."""
    prefill_s: float
    prefill_tokens: int
    """Prompt tokens that were computed (the cached ones are not)."""
    decode_s: float
    """From the first token to the last."""
    decode_tokens: int
    """Tokens made by decode steps: those of all completions, less the first of each, which prefill gives."""

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens computed per second; 0 when none were."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Decoded tokens per second over all completions of the request; 0 when none were."""
        return self.decode_tokens / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class Generation:
    """All that came of one prompt."""

    prompt: str
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    usage: Usage
    timings: Timings

    @property
    def text(self) -> str:
        """Text of the first completion."""
        return self.completions[0].text

    def to_dict(self) -> dict[str, Any]:
        """Values for `json.dumps`, rates and totals included."""
        data = dataclasses.asdict(self)
        data["usage"]["total_tokens"] = self.usage.total_tokens
        data["timings"]["prefill_tokens_per_s"] = self.timings.prefill_tokens_per_s
        data["timings"]["tokens_per_s"] = self.timings.tokens_per_s
        return data


@dataclass(frozen=True)
class StreamEvent:
    """A piece of a stream. The pieces' texts (and token ids) of one index, joined, are the completion's."""

    index: int
    """Which completion it belongs to."""
    text: str
    """New text: whole characters that no longer can be the start of a stop string. May be empty."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    """Set on the last piece of this completion."""
    generation: Generation | None = None
    """The whole result; set on the last event of the stream."""
