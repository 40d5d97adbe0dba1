"""One evaluation of one model: the run of the journal and of the results file."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dejavu.errors import InputError
from dejavu.evaluation.metrics import Estimate, average, means
from dejavu.evaluation.perplexity import DEFAULT_WINDOW
from dejavu.evaluation.spot_check import SpotCheck
from dejavu.evaluation.suite import (
    Share,
    Subject,
    evaluate_task,
    evaluate_text,
    item_values,
    prepare_task,
    prepare_text,
    to_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dejavu.evaluation.journal import Journal
    from dejavu.evaluation.suite import Base
    from dejavu.evaluation.tasks import Task
    from dejavu.llm import LLM

SCHEMA = 1


@dataclass(frozen=True)
class Workload:
    """What is evaluated.

    Raises:
        InputError: there is nothing, or a number is out of range.
    """

    tasks: tuple[Task, ...] = ()
    texts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Names and documents."""
    share: Share = field(default_factory=Share)
    tokens: int | None = 20_000
    """Most tokens scored of each text; None: all."""
    window: int | None = None
    """Most tokens of context in texts; None: 1024, or the model's context where that is shorter."""
    max_tokens: int = 64
    """Most tokens generated for an item."""
    spot_check: int = 0
    """Items that are scored again by decoding."""

    def __post_init__(self) -> None:
        if not self.tasks and not self.texts:
            raise InputError("nothing to evaluate", fix="give --tasks, --text, or both")
        if self.spot_check and all(task.kind == "generation" for task in self.tasks):
            raise InputError(
                "a spot check needs items with log-likelihoods", fix="give --tasks with such items"
            )
        if len({name for name, _ in self.texts}) < len(self.texts):
            raise InputError("two texts have the same name", fix="rename one of the files")
        if self.tokens is not None and self.tokens < 1:
            raise InputError(f"{self.tokens} tokens of text", fix="ask for at least one token")


@dataclass(frozen=True)
class Setting:
    """How the model is run: what tells runs apart in a journal."""

    fingerprint: str
    options: str
    """`options_digest` of the model."""
    codec: str
    kv_dtype: str
    executor: str
    plan: str | None
    """SHA-256 of the plan."""
    version: str | None
    """Of dejavu; None: it is not installed as a package."""
    isa: str | None
    """Instruction set that the kernels are for; None: the reference executor has none."""

    @property
    def key(self) -> str:
        """Short name of all of it."""
        return hashlib.sha256(json.dumps([SCHEMA, asdict(self)]).encode()).hexdigest()[:16]


def options_digest(llm: LLM) -> str:
    """SHA-256 of a model's configuration and tokenizer, which the fingerprint of its weights does not hold."""
    config = json.dumps(llm.executor.config.to_dict(), sort_keys=True)
    return hashlib.sha256(f"{config}{llm.tokenizer.digest}".encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """An evaluation of one model."""

    record: dict[str, Any]
    """JSON-able: key, codec, plan, path, tasks, average (of accuracies), texts, plan_stats, spot_check, seconds."""
    values: dict[str, list[dict[str, float]]]
    """Of each task, the figures of each item whose means are metrics."""

    def minus(self, first: Run) -> dict[str, Any]:
        """Differences to a run of the same items, task by task, JSON-able.

        Items are paired: the standard error is that of their differences, far less than that of the difference of two
        independent runs.
        """
        found = {}
        for name, items in self.values.items():
            if items:
                pairs = list(zip(items, first.values[name], strict=True))
                found[name] = means([{m: a[m] - b[m] for m in a} for a, b in pairs])
        differences: dict[str, Any] = {"tasks": {name: to_json(metrics) for name, metrics in found.items()}}
        if "average" in self.record:
            differences["average"] = average(found).to_dict()
        return differences


def evaluate(
    llm: LLM,
    setting: Setting,
    workload: Workload,
    journal: Journal,
    *,
    base: Base | None = None,
    begin: Callable[[int], Callable[[int, str], None]],
) -> Run:
    """Evaluate one model, but for what `journal` holds already.

    Args:
        llm: the model, with its plan; tokens of tasks and texts select by it, each for itself, but for those of prompts to
            generate from, which are dense.
        setting: how it is run.
        workload: what is evaluated.
        journal: takes finished items.
        base: the dense model that texts are compared with.
        begin: told how many tokens there are to feed; returns what is told of those done, and of what they are.

    Raises:
        InputError: the window is out of range, or a text is empty.
        NumericsError: a probability is NaN or zero.
        CacheError: a finished item cannot be written.
    """
    started = time.perf_counter()
    context = llm.context if base is None else min(llm.context, base.llm.context)
    window = workload.window or min(DEFAULT_WINDOW, context)
    if not 2 <= window <= context:
        whose = "the model's" if context == llm.context else "the base's"
        raise InputError(f"window of {window} tokens", fix=f"choose 2 to {context}, {whose} context")
    tasks = [
        prepare_task(llm.tokenizer, task, llm.context, share=workload.share, max_tokens=workload.max_tokens)
        for task in workload.tasks
    ]
    texts = [
        prepare_text(
            llm.tokenizer, name, documents, tokens=workload.tokens, window=window, share=workload.share
        )
        for name, documents in workload.texts
    ]
    check = SpotCheck.choose(tasks, workload.spot_check)
    advance = begin(sum([*(t.tokens for t in tasks), *(t.tokens for t in texts), check.tokens]))
    journal.begin()
    subject = Subject(llm, setting.key, journal, advance)
    found = {prepared.task.name: evaluate_task(subject, prepared) for prepared in tasks}
    record: dict[str, Any] = {
        "key": setting.key,
        "codec": setting.codec,
        "plan": llm.plan.name if llm.plan else None,
        "plan_sha256": setting.plan,
        "path": "masked" if llm.plan else "prefill",
        "tasks": found,
        "texts": {p.name: evaluate_text(subject, p, base) for p in texts},
    }
    accuracies = {name: _estimates(entry["metrics"]) for name, entry in found.items()}
    if sum("acc" in metrics for metrics in accuracies.values()) > 1:
        record["average"] = average(accuracies).to_dict()
    stats = llm.executor.last_stats if llm.plan else {}
    if stats.get("tokens", 1) and stats:  # not where everything was in the journal
        record["plan_stats"] = stats
    if workload.spot_check:
        record["spot_check"] = check.run(subject)
    record["seconds"] = time.perf_counter() - started
    return Run(record, {prepared.task.name: item_values(subject, prepared) for prepared in tasks})


def _estimates(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Estimate]:
    return {name: Estimate(**figures) for name, figures in metrics.items()}
