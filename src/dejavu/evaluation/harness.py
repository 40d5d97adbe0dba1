"""dejavu as a model of lm-evaluation-harness (``pip install '.[eval]'`` in a clone of dejavu).

    python -m dejavu.evaluation.harness --model dejavu --model_args pretrained=smollm2,plan=PLAN --tasks lambada_openai

takes all options of ``lm_eval``. In Python, importing this module registers the model "dejavu".

Under a plan every token of a log-likelihood selects for itself, as in decoding; generated text is decoded by the plan
after a dense prompt, as `dejavu generate` does. What does not fit into the context, with the text to generate, loses its
first tokens with a warning, as in the harness's own models.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from dejavu.errors import InputError
from dejavu.evaluation.encoding import Prompt, encode_pair, lead_in
from dejavu.evaluation.likelihood import GROUP, Score, pack, score
from dejavu.llm import LLM
from dejavu.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_IGNORED = ("batch_size", "max_batch_size", "device")
"""What the harness passes to every model; sequences are put together by their lengths here."""


@register_model("dejavu")
class DejavuLM(LM):  # type: ignore[misc, unused-ignore]
    """A model of the harness.

    Args:
        pretrained: a folder, a GGUF file, a hub id or ``pypi:NAME``.
        llm: or a loaded one, which is not closed.
        max_length: most tokens of context; None: the model's.
        options: of `LLM.from_pretrained`: codec, plan ("off" by default), kv_dtype, threads, executor, offline.
    """

    def __init__(
        self, pretrained: str = "", *, llm: LLM | None = None, max_length: int | None = None, **options: Any
    ) -> None:
        super().__init__()
        options = {name: value for name, value in options.items() if name not in _IGNORED}
        options.setdefault("plan", "off")
        options.setdefault("fallback", False)  # a plan is judged as a whole
        self.llm = llm or LLM.from_pretrained(pretrained, context=max_length, **options)

    @property
    def tokenizer_name(self) -> str:
        """Hash of all of the tokenizer that requests depend on: names it in the harness's cache of them."""
        tokenizer = self.llm.tokenizer
        facts = f"{tokenizer.digest}{tokenizer.chat_template}"  # rendered chats are cached too
        return hashlib.sha256(facts.encode()).hexdigest()

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for the record."""
        return self.llm.tokenizer.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a chat."""
        return self.llm.render_chat(chat_history, add_generation_prompt=add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy decoding gives it) of each (context, continuation)."""
        pairs = [encode_pair(self.llm.tokenizer, *request.args) for request in requests]
        return [(found.logprob, found.greedy) for found in self._scores(pairs, disable_tqdm)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, in windows of the whole context, without overlap."""
        tokenizer, counts, pairs = self.llm.tokenizer, [], []
        for request in requests:
            tokens = tokenizer.encode(request.args[0], add_special=False)
            prefix = self._prefix()
            found = [*get_rolling_token_windows(tokens, prefix, self.llm.context, context_len=1)]
            disjoint = [make_disjoint_window(window) for window in found]
            pairs += [(tuple(context), tuple(target)) for context, target in disjoint]
            counts.append(len(found))
        scores = iter(self._scores(pairs, disable_tqdm))
        return [sum(found.logprob for found in itertools.islice(scores, count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to a string of "until", an end token or "max_gen_toks" (256).

        Raises:
            InputError: no context fits beside so much text, or an option of generation is unknown.
        """
        texts = []
        for request in tqdm(requests, disable=disable_tqdm):
            context, options = request.args
            params = sampling(options)
            fitting = self._fit_prompt(context, params.max_tokens or 1)  # None: until the context is full
            texts.append(self.llm.generate(fitting, params).text)
        return texts

    def _prefix(self) -> int:
        found = lead_in(self.llm.tokenizer, ())
        if not found:
            raise InputError("the tokenizer has neither BOS nor EOS to begin a text with")
        return found[0]

    def _scores(
        self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], disable_tqdm: bool
    ) -> Iterator[Score]:
        """Of each pair of context and target, in order; pairs of one context that follow each other share it."""
        prompts: list[Prompt] = []
        for context, target in map(self._fit, pairs):
            if prompts and prompts[-1].context == context:
                prompts[-1] = Prompt(context, (*prompts[-1].targets, target))
            else:
                prompts.append(Prompt(context, (target,)))
        with tqdm(total=len(pairs), disable=disable_tqdm) as bar:
            for group in pack([len(prompt.context) for prompt in prompts], count=GROUP):
                together = [prompts[i] for i in group]
                for found in score(self.llm.executor, together, sparse=self.llm.plan is not None):
                    bar.update(len(found))
                    yield from found

    def _fit_prompt(self, text: str, max_tokens: int) -> str:
        """The end of a text that begins with a token, as much as the context holds beside `max_tokens`."""
        tokenizer, room = self.llm.tokenizer, self.llm.context - max_tokens
        count = len(tokenizer.encode_prompt(text))
        if count <= room:
            return text
        _warn(count, room)
        starts = [start for start, _ in tokenizer.backend.encode(text, add_special_tokens=False).offsets]
        ends = (text[start:] for start in starts[len(starts) - room :])  # BOS may come before them
        found = next((end for end in ends if len(tokenizer.encode_prompt(end)) <= room), None)
        if found is None:
            raise InputError(
                f"{max_tokens} tokens to generate leave no room for a prompt in a context of {self.llm.context}",
                fix=f"lower {_MAX_TOKENS[0]} of the task, or raise max_length up to the model's context",
            )
        return found

    def _fit(self, pair: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The last tokens of a pair, as many as the context holds."""
        context, target = pair
        if not context or not target:
            raise InputError(
                "a context or a continuation has no tokens", fix="check the documents of the task"
            )
        whole = (context + target)[-(self.llm.context + 1) :]
        if len(whole) < len(context) + len(target):
            _warn(len(context) + len(target) - 1, self.llm.context)
        kept = min(len(target), len(whole) - 1)
        return whole[: len(whole) - kept], whole[len(whole) - kept :]


def _warn(tokens: int, room: int) -> None:
    logging.getLogger(__name__).warning(
        "%d tokens do not fit where there is room for %d: the first are left out", tokens, room
    )


def sampling(options: Mapping[str, Any]) -> SamplingParams:
    """The harness's options of generation as ours; greedy unless "do_sample" or a temperature says otherwise.

    Raises:
        InputError: an unknown option, or a value that is out of range.
    """
    left = dict(options)
    until = left.pop("until", [])
    limits = [left.pop(name) for name in _MAX_TOKENS if name in left]
    temperature = left.pop("temperature", 1.0 if left.get("do_sample") else 0.0)
    if not left.pop("do_sample", temperature > 0):
        temperature = 0.0
    known = {name: left.pop(name) for name in ("top_p", "top_k", "min_p", "seed") if name in left}
    if left:
        raise InputError(
            f"generation options {', '.join(left)} are unknown", fix=f"known: until, {_MAX_TOKENS[0]}, do_sample, "
            "temperature, top_p, top_k, min_p, seed"
        )  # fmt: skip
    return SamplingParams(
        temperature=temperature,
        max_tokens=limits[0] if limits else 256,
        stop=[until] if isinstance(until, str) else [text for text in until if text],
        **known,
    )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
