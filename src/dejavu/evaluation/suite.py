"""Tasks and texts on one model: what is left out, scored, journalled and summed up.

Items go through the model in groups whose make-up depends on the task only, and a group that was interrupted is scored
whole again, so that a resumed run gives the bits of one that was not.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dejavu.errors import InputError
from dejavu.evaluation.divergence import cut, measure_window, text_metrics
from dejavu.evaluation.encoding import encode_generation, encode_item
from dejavu.evaluation.likelihood import GROUP, Score, pack, score
from dejavu.evaluation.metrics import (
    Estimate,
    choice_metrics,
    choice_values,
    cloze_metrics,
    cloze_values,
    generation_metrics,
    generation_values,
)
from dejavu.evaluation.perplexity import encode_documents
from dejavu.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from dejavu.evaluation.divergence import Window
    from dejavu.evaluation.encoding import Prompt, SkipReason
    from dejavu.evaluation.journal import Journal
    from dejavu.evaluation.tasks import Item, Task
    from dejavu.llm import LLM
    from dejavu.tokenizer import Tokenizer


@dataclass(frozen=True)
class Share:
    """Which items are evaluated: the first `limit` (None: all), and of those every `of`-th from `part` (1 to `of`) on."""

    limit: int | None = None
    part: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.part <= self.of:
            raise InputError(f"shard {self.part}/{self.of}", fix="give --shard i/n with i from 1 to n")

    def numbers(self, count: int) -> range:
        """Of `count` things."""
        return range(count if self.limit is None else min(count, self.limit))[self.part - 1 :: self.of]


@dataclass(frozen=True)
class Base:
    """A dense model that predictions on texts are compared with."""

    llm: LLM
    name: str
    """For the record."""
    key: str
    """Of its weights and options: tells bases of one name apart in the journal."""


@dataclass(frozen=True)
class PreparedTask:
    """A task as token ids, and which of its items are skipped."""

    task: Task
    items: tuple[Item, ...]
    prompts: tuple[tuple[Prompt, ...], ...]
    """Of each item."""
    skipped: tuple[tuple[int, SkipReason], ...]
    """Lines, and why."""
    max_tokens: int

    @property
    def of(self) -> str:
        """Its name in the journal."""
        kind = f":{self.max_tokens}" if self.task.kind == "generation" else ""
        return f"{self.task.name}:{self.task.fingerprint[:16]}{kind}"

    @property
    def tokens(self) -> int:
        """Number of tokens that scoring feeds, about."""
        return sum(prompt.tokens for prompts in self.prompts for prompt in prompts)


@dataclass(frozen=True)
class PreparedText:
    """A text in windows."""

    name: str
    windows: tuple[Window, ...]
    numbers: range
    """Which windows are evaluated."""
    fingerprint: str

    @property
    def tokens(self) -> int:
        """Number of tokens to score."""
        return sum(self.windows[i].targets.size for i in self.numbers)


def prepare_task(
    tokenizer: Tokenizer, task: Task, max_context: int, *, share: Share | None = None, max_tokens: int = 64
) -> PreparedTask:
    """Encode the items of `share`; `max_tokens` are generated. Items beyond `max_context` are skipped."""
    items, prompts, skipped = [], [], []
    for i in (share or Share()).numbers(len(task.items)):
        item = task.items[i]
        if task.kind == "generation":
            encoded = encode_generation(tokenizer, item.pairs[0][0], max_context, max_tokens)
        else:
            encoded = encode_item(tokenizer, item.pairs, max_context)
        if isinstance(encoded, list):
            items.append(item)
            prompts.append(tuple(encoded))
        else:
            skipped.append((item.line, encoded))
    return PreparedTask(task, tuple(items), tuple(prompts), tuple(skipped), max_tokens)


def prepare_text(
    tokenizer: Tokenizer, name: str, texts: Iterable[str], *, tokens: int | None, window: int, share: Share
) -> PreparedText:
    """Encode the first `tokens` tokens of a text and cut them into windows; `share` divides these."""
    documents = encode_documents(tokenizer, texts, limit=tokens)
    found = cut(documents, window)
    digest = hashlib.sha256(repr((documents, window)).encode()).hexdigest()
    numbers = Share(None, share.part, share.of).numbers(len(found))
    return PreparedText(name, tuple(found), numbers, digest)


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    Args:
        llm: the model, with its plan.
        run: names model, plan, codec and so on in the journal.
        journal: finished items.
        advance: told of tokens that are done, and of what.
    """

    llm: LLM
    run: str
    journal: Journal
    advance: Callable[[int, str], None]

    @property
    def sparse(self) -> bool:
        """Whether there is a plan for tokens to select by."""
        return self.llm.plan is not None


def evaluate_task(subject: Subject, prepared: PreparedTask) -> dict[str, Any]:
    """Score what the journal lacks. JSON-able: kind, sha256, items (scored), skipped, metrics.

    Raises:
        NumericsError: a probability is NaN or zero.
    """
    task, journal = prepared.task, subject.journal
    finish = _generate if task.kind == "generation" else _score
    for group in _groups(prepared):
        lines = [prepared.items[i].line for i in group]
        if any(journal.get(subject.run, prepared.of, line) is None for line in lines):
            results = finish(subject, prepared, group)
            journal.add(subject.run, prepared.of, zip(lines, results, strict=True))
        subject.advance(sum(p.tokens for i in group for p in prepared.prompts[i]), task.name)
    return {
        "kind": task.kind,
        "sha256": task.fingerprint,
        "items": len(prepared.items),
        "skipped": [{"line": line, "reason": reason} for line, reason in prepared.skipped],
        "metrics": to_json(_task_metrics(subject, prepared)) if prepared.items else {},
    }


def evaluate_text(subject: Subject, prepared: PreparedText, base: Base | None) -> dict[str, Any]:
    """Score windows that the journal lacks, beside `base` if there is one. JSON-able: windows, tokens, metrics."""
    of = f"{prepared.name}:{prepared.fingerprint[:16]}:{f'{base.name}:{base.key}' if base else 'alone'}"
    found = []
    for number in prepared.numbers:
        window = prepared.windows[number]
        result = subject.journal.get(subject.run, of, number)
        if result is None:
            beside = None if base is None else base.llm.executor
            result = measure_window(subject.llm.executor, beside, window, sparse=subject.sparse)
            subject.journal.add(subject.run, of, [(number, result)])
        found.append(result)
        subject.advance(window.targets.size, prepared.name)
    return {
        "base": base.name if base else None,
        "windows": len(found),
        "tokens": prepared.tokens,
        "metrics": to_json(text_metrics(found)) if found else {},
    }


def item_scores(subject: Subject, prepared: PreparedTask) -> list[list[Score]]:
    """Scores of the pairs of each item, from the journal."""
    return [[Score(*pair) for pair in record["scores"]] for record in _records(subject, prepared)]


def item_values(subject: Subject, prepared: PreparedTask) -> list[dict[str, float]]:
    """The figures of each item whose means are metrics, from the journal."""
    if prepared.task.kind == "generation":
        texts = [record["text"] for record in _records(subject, prepared)]
        pairs = zip(prepared.items, texts, strict=True)
        return [generation_values(item.pairs[0][1], text) for item, text in pairs]
    scores = item_scores(subject, prepared)
    if prepared.task.kind == "cloze":
        return [cloze_values(found[0]) for found in scores]
    return [choice_values(item, found) for item, found in zip(prepared.items, scores, strict=True)]


def to_json(metrics: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """Plain values."""
    return {name: estimate.to_dict() for name, estimate in metrics.items()}


def _groups(prepared: PreparedTask) -> Iterator[range]:
    if prepared.task.kind == "generation":
        return pack([0] * len(prepared.items), count=GROUP)
    return pack([sum(len(p.context) for p in prompts) for prompts in prepared.prompts], count=GROUP)


def _score(subject: Subject, prepared: PreparedTask, group: range) -> list[dict[str, Any]]:
    """Scores of the pairs of each item of the group."""
    flat = [prompt for i in group for prompt in prepared.prompts[i]]
    scores = iter(score(subject.llm.executor, flat, sparse=subject.sparse))
    found = []
    for i in group:
        pairs = itertools.chain.from_iterable(next(scores) for _ in prepared.prompts[i])
        found.append({"scores": [[pair.logprob, pair.greedy] for pair in pairs]})
    return found


def _generate(subject: Subject, prepared: PreparedTask, group: range) -> list[dict[str, Any]]:
    """Greedy texts of each item of the group."""
    texts: dict[int, str] = {}
    for stop in dict.fromkeys(prepared.items[i].stop for i in group):
        numbers = [i for i in group if prepared.items[i].stop == stop]
        params = SamplingParams(temperature=0, max_tokens=prepared.max_tokens, stop=stop)
        found = subject.llm.generate([prepared.items[i].pairs[0][0] for i in numbers], params)
        texts |= {i: generation.text for i, generation in zip(numbers, found, strict=True)}
    return [{"text": texts[i]} for i in group]


def _records(subject: Subject, prepared: PreparedTask) -> list[dict[str, Any]]:
    found = [subject.journal.get(subject.run, prepared.of, item.line) for item in prepared.items]
    return [record for record in found if record is not None]


def _task_metrics(subject: Subject, prepared: PreparedTask) -> dict[str, Estimate]:
    if prepared.task.kind == "generation":
        texts = [record["text"] for record in _records(subject, prepared)]
        return generation_metrics([item.pairs[0][1] for item in prepared.items], texts)
    scores = item_scores(subject, prepared)
    if prepared.task.kind == "cloze":
        return cloze_metrics([found[0] for found in scores])
    return choice_metrics(prepared.items, scores)
