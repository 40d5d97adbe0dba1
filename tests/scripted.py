"""An executor whose logits are a function of the tokens, for tests of what `LLM` does around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.llm import LLM
from dejavu.models.config import ModelConfig
from dejavu.outputs import Generation
from dejavu.sampling import SamplingParams
from dejavu.tokenizer import Tokenizer
from tiny_tokenizer import byte_level_metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}assistant:"
TOKENIZER = Tokenizer.from_gguf(byte_level_metadata())
TOKENIZER.chat_template = TEMPLATE
END = 0
VOCAB = TOKENIZER.vocab_size + 3
GREEDY = SamplingParams(temperature=0, max_tokens=12)


class ScriptedCache:
    """Remembers its tokens."""

    def __init__(self, tokens: tuple[int, ...] = ()) -> None:
        self.tokens = list(tokens)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        return 0

    def truncate(self, length: int) -> None:
        assert 0 <= length <= len(self.tokens)
        del self.tokens[length:]

    def fork(self) -> ScriptedCache:
        return ScriptedCache(tuple(self.tokens))


class ScriptedExecutor:
    """Logits are a function of the tokens in the cache: random, but `answers[prompt]` follows a prompt."""

    def __init__(self, answers: dict[str, str] | None = None, context: int = 2000) -> None:
        self.config = ModelConfig("test", VOCAB, 8, 1, 1, 1, 8, 8, context)
        self.answers = [
            (TOKENIZER.encode(prompt), TOKENIZER.encode(answer)) for prompt, answer in (answers or {}).items()
        ]
        self.prefilled: list[int] = []
        self.batches: list[int] = []
        self.interrupt_after = -1
        self.closed = False

    def new_cache(self) -> ScriptedCache:
        return ScriptedCache()

    def logits(self, cache: ScriptedCache) -> NDArray[np.float32]:
        for prompt, answer in self.answers:
            done = cache.length - len(prompt)
            if cache.tokens == (prompt + answer)[: cache.length] and 0 <= done < len(answer):
                return np.where(np.arange(VOCAB) == answer[done], 50, 0).astype(np.float32)
        values = np.random.default_rng(cache.tokens).standard_normal(VOCAB).astype(np.float32)
        values[END] = -9  # the end comes only where the script says so
        return values

    def prefill(
        self, tokens: NDArray[np.int32], cache: Any, *, all_logits: bool = False
    ) -> NDArray[np.float32]:
        assert tokens.dtype == np.int32
        assert not all_logits
        self.prefilled.append(len(tokens))
        cache.tokens += tokens.tolist()
        return self.logits(cache)[None]

    def decode(self, tokens: NDArray[np.int32], caches: Any) -> NDArray[np.float32]:
        assert tokens.dtype == np.int32
        assert len(tokens) == len(caches) == len(set(map(id, caches)))
        self.batches.append(len(tokens))
        for token, cache in zip(tokens, caches, strict=True):
            cache.tokens.append(int(token))
        self.interrupt_after -= 1
        if self.interrupt_after == 0:
            raise KeyboardInterrupt
        return np.stack([self.logits(cache) for cache in caches])

    def close(self) -> None:
        self.closed = True


def chat(*contents: str) -> list[dict[str, str]]:
    """Messages of the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


def scripted(answers: dict[str, str] | None = None, *, context: int = 2000, max_batch: int = 8) -> Any:
    executor = ScriptedExecutor(answers, context)
    return LLM(executor, TOKENIZER, max_batch=max_batch), executor


def alone(prompt: str, params: SamplingParams, **options: Any) -> Generation:
    llm, _ = scripted(**options)
    result = llm.generate(prompt, params)
    assert isinstance(result, Generation)
    return result


PROMPTS = ["the cat", "mat", "été", "1234 + 5678"]
