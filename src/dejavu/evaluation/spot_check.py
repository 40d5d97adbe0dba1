"""Scores of a few items again, on the decode path: one token at a time, as text is generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dejavu.evaluation.likelihood import score_by_decoding
from dejavu.evaluation.metrics import choose
from dejavu.evaluation.suite import item_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dejavu.evaluation.suite import PreparedTask, Subject


@dataclass(frozen=True)
class SpotCheck:
    """Which items are scored again: `count` of all scored ones (all, if there are fewer), evenly spread over the tasks."""

    tasks: tuple[PreparedTask, ...]
    places: tuple[tuple[int, int], ...]
    """Numbers of task and item."""

    @classmethod
    def choose(cls, tasks: Sequence[PreparedTask], count: int) -> SpotCheck:
        """Of tasks that have log-likelihoods."""
        scored = tuple(t for t in tasks if t.task.kind != "generation")
        places = [(t, i) for t, prepared in enumerate(scored) for i in range(len(prepared.items))]
        count = min(count, len(places))
        return cls(scored, tuple(places[n * len(places) // count] for n in range(count)))

    @property
    def tokens(self) -> int:
        """Number of tokens that will be decoded."""
        return sum(prompt.tokens for t, i in self.places for prompt in self.tasks[t].prompts[i])

    def run(self, subject: Subject) -> dict[str, Any]:
        """Score the items, and compare with what is in the journal.

        Returns:
            items; max_difference of a continuation's log-likelihood in nats, `task` and `line` where it is, and
            per_token: that over the number of tokens; changed: items whose verdict (choice, or greedy match) is another.

        Raises:
            NumericsError: a probability is NaN or zero.
        """
        before = [item_scores(subject, prepared) for prepared in self.tasks]
        worst, changed = -1.0, 0
        where: dict[str, Any] = {"task": None, "line": None, "per_token": 0.0}
        for t, i in self.places:
            prepared, item = self.tasks[t], self.tasks[t].items[i]
            decoded = [score_by_decoding(subject.llm.executor, prompt) for prompt in prepared.prompts[i]]
            again, known = [score for scores in decoded for score in scores], before[t][i]
            sizes = [len(target) for prompt in prepared.prompts[i] for target in prompt.targets]
            differences = [abs(a.logprob - b.logprob) for a, b in zip(again, known, strict=True)]
            difference, tokens = max(zip(differences, sizes, strict=True))
            if difference > worst:
                worst = difference
                where = {"task": prepared.task.name, "line": item.line, "per_token": difference / tokens}
            if prepared.task.kind == "choice":
                changed += choose(item, again) != choose(item, known)
            else:
                changed += again[0].greedy != known[0].greedy
            subject.advance(sum(prompt.tokens for prompt in prepared.prompts[i]), "spot check")
        return {"items": len(self.places), "max_difference": max(worst, 0.0), **where, "changed": changed}
