"""Figures with their standard errors."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dejavu.evaluation.likelihood import Score
    from dejavu.evaluation.tasks import Item


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error (None where one sample tells nothing about it)."""

    value: float
    stderr: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """As JSON."""
        return {"value": self.value, "stderr": self.stderr}


def mean(values: Sequence[float] | Sequence[bool]) -> Estimate:
    """Mean of at least one value; the standard error is the sample's standard deviation over sqrt(n)."""
    array = np.asarray(values, np.float64)
    n = len(array)
    return Estimate(float(array.mean()), float(array.std(ddof=1) / math.sqrt(n)) if n > 1 else None)


def means(values: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Mean of each figure over items that all have the same ones."""
    return {name: mean([item[name] for item in values]) for name in values[0]}


def mean_per_token(sums: Sequence[float], tokens: Sequence[int]) -> Estimate:
    """Mean over all tokens of pieces whose `sums` and numbers of `tokens` are given.

    The standard error is that of a ratio, pieces being the independent samples: tokens of one text are not.
    """
    total, n, count = math.fsum(sums), sum(tokens), len(sums)
    value = total / n
    if count < 2:
        return Estimate(value)
    squares = math.fsum((s - value * t) ** 2 for s, t in zip(sums, tokens, strict=True))
    return Estimate(value, math.sqrt(squares * count / (count - 1)) / n)


def exp(estimate: Estimate) -> Estimate:
    """Exp of a figure, infinite beyond a double; the standard error to first order."""
    value = math.exp(estimate.value) if estimate.value < 709 else math.inf
    return Estimate(value, None if estimate.stderr is None else value * estimate.stderr)


def choose(item: Item, scores: Sequence[Score], *, per_byte: bool = False) -> int:
    """The likeliest pair: by log-likelihood, or by that over the UTF-8 bytes of the continuation as it stands."""
    sizes = [len(continuation.encode()) if per_byte else 1 for _, continuation in item.pairs]
    return int(np.argmax([score.logprob / size for score, size in zip(scores, sizes, strict=True)]))


def choice_values(item: Item, scores: Sequence[Score]) -> dict[str, float]:
    """Of one item, 0 or 1: acc and acc_norm (per byte)."""
    picks = {"acc": choose(item, scores), "acc_norm": choose(item, scores, per_byte=True)}
    return {name: float(pick == item.gold) for name, pick in picks.items()}


def choice_metrics(items: Sequence[Item], scores: Sequence[Sequence[Score]]) -> dict[str, Estimate]:
    """acc, acc_norm (per byte); macro_f1 too where all items have the same choices, as labels are."""
    metrics = means([choice_values(item, found) for item, found in zip(items, scores, strict=True)])
    labels = {tuple(continuation for _, continuation in item.pairs) for item in items}
    if len(labels) == 1 and len(set(labels.pop())) > 1:
        picks = [choose(item, found) for item, found in zip(items, scores, strict=True)]
        metrics["macro_f1"] = Estimate(macro_f1([item.gold for item in items], picks))
    return metrics


def macro_f1(golds: Sequence[int], picks: Sequence[int]) -> float:
    """Mean over the classes that occur of 2 hits / (golds + picks)."""
    gold, picked = Counter(golds), Counter(picks)
    hits = Counter(g for g, p in zip(golds, picks, strict=True) if g == p)
    return float(np.mean([2 * hits[c] / (gold[c] + picked[c]) for c in gold.keys() | picked.keys()]))


def cloze_values(score: Score) -> dict[str, float]:
    """Of one item: acc, 1 where greedy decoding gives the target."""
    return {"acc": float(score.greedy)}


def cloze_metrics(scores: Sequence[Score]) -> dict[str, Estimate]:
    """acc; perplexity: exp of the mean over items of -log p(target)."""
    return means([*map(cloze_values, scores)]) | {"perplexity": exp(mean([-s.logprob for s in scores]))}


def generation_values(target: str, text: str) -> dict[str, float]:
    """exact_match and token f1 of the normalised texts."""
    return {"exact_match": float(normalise(target) == normalise(text)), "f1": token_f1(target, text)}


def generation_metrics(targets: Sequence[str], texts: Sequence[str]) -> dict[str, Estimate]:
    """exact_match and token f1, and bleu (of the corpus, 0 to 100) where sacrebleu is installed."""
    metrics = means([generation_values(target, text) for target, text in zip(targets, texts, strict=True)])
    bleu = corpus_bleu(targets, texts)
    return metrics if bleu is None else metrics | {"bleu": Estimate(bleu)}


def normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces: what SQuAD compares."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(target: str, text: str) -> float:
    """Harmonic mean of precision and recall of the normalised words; 1 where both have none."""
    wanted, found = normalise(target).split(), normalise(text).split()
    if not wanted or not found:
        return float(wanted == found)
    return 2 * (Counter(wanted) & Counter(found)).total() / (len(wanted) + len(found))


def corpus_bleu(targets: Sequence[str], texts: Sequence[str]) -> float | None:
    """Sacrebleu's BLEU with its defaults; None where sacrebleu is not installed."""
    try:
        import sacrebleu
    except ImportError:
        return None
    return float(sacrebleu.corpus_bleu(list(texts), [list(targets)]).score)


def average(tasks: Mapping[str, Mapping[str, Estimate]]) -> Estimate:
    """Unweighted mean of `acc` over the tasks that have it; errors add up as those of independent samples.

    Raises:
        InputError: no task has it.
    """
    found = [metrics["acc"] for metrics in tasks.values() if "acc" in metrics]
    if not found:
        raise InputError("no task has an accuracy")
    errors = [e.stderr for e in found]
    stderr = None if None in errors else math.sqrt(sum(e**2 for e in errors if e is not None)) / len(found)
    return Estimate(float(np.mean([e.value for e in found])), stderr)
