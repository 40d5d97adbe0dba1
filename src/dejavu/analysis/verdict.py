"""What the figures come to, in plain words. Each sentence is computed from the document and from nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

SMALL, LARGE = 1.02, 1.10
"""Perplexity ratios: what passes as no loss, and what nobody would accept."""
_NATURAL = 0.3  # share of exact zeros from which they are worth a sentence
_FIXED = 1.5  # a fixed set does as well if its loss is at most so many times the oracle's


def verdict(document: Mapping[str, Any]) -> list[str]:
    """One sentence per finding; the first is the answer."""
    dense, vocabulary = document["quality"]["dense_perplexity"], document["shape"]["vocabulary"]
    if dense >= vocabulary:
        return [
            f"Nothing can be said: the model predicts this text no better than chance (perplexity {dense:.3g} over a "
            f"vocabulary of {vocabulary})."
        ]
    sentences = [
        _neurons(document),
        _zeros(document),
        _contextual(document),
        _gate(document),
        _heads(document),
        _batches(document),
        _look_ahead(document),
    ]
    return [sentence for sentence in sentences if sentence]


def ratio_at(document: Mapping[str, Any], part: str, selector: str, density: float) -> float | None:
    """Perplexity ratio of one run; None if it was not made."""
    for point in document["quality"]["points"]:
        if (point["part"], point["selector"], point["density"]) == (part, selector, density):
            return float(point["ppl_ratio"])
    return None


def reach(document: Mapping[str, Any], part: str, selector: str, limit: float) -> float:
    """The smallest density measured down to which the perplexity ratio stays within `limit`; 1 if none does."""
    found = 1.0
    points = [p for p in document["quality"]["points"] if (p["part"], p["selector"]) == (part, selector)]
    for point in sorted(points, key=lambda p: p["density"], reverse=True):
        if point["ppl_ratio"] > limit:
            break
        found = float(point["density"])
    return found


def loss(ratio: float) -> str:
    """A perplexity ratio as a change: 1.021 -> "+2.1%", 12 -> "12 times the"."""
    if ratio >= 3:
        return f"{ratio:.3g} times the"
    return f"{100 * (ratio - 1):+.{1 if ratio < 1.1 else 0}f}%"


def percent(share: float) -> str:
    """0.125 -> "12%"; small shares keep a digit."""
    return f"{100 * share:.{1 if share < 0.0995 else 0}f}%".replace(".0%", "%")


def _neurons(document: Mapping[str, Any]) -> str:
    best = _reached(document)
    if best == 1:
        mildest = max(p["density"] for p in document["quality"]["points"] if p["part"] == "neurons")
        ratio = ratio_at(document, "neurons", "oracle", mildest) or 1.0
        return (
            f"This model shows no usable sparsity of neurons: even the best {percent(mildest)} of them, chosen with "
            f"hindsight, cost {loss(ratio)} perplexity."
        )
    ratio = ratio_at(document, "neurons", "oracle", best) or 1.0
    text = f"This model: {percent(best)} of the neurons for {loss(ratio)} perplexity, if each token has the right ones"
    tenth = ratio_at(document, "neurons", "oracle", 0.1)
    if tenth is not None and tenth > SMALL:
        return f"{text}; do not expect to skip 90%: that costs {loss(tenth)} perplexity even with hindsight."
    return f"{text}."


def _zeros(document: Mapping[str, Any]) -> str:
    zeros = document["zeros"]
    if zeros["mean"] < _NATURAL:
        return ""
    low, high = min(zeros["share"]), max(zeros["share"])
    return (
        f"Natural zeros: {percent(zeros['mean'])} of the neurons are exactly zero for a token ({percent(low)} to "
        f"{percent(high)} by layer); to skip those changes nothing."
    )


def _contextual(document: Mapping[str, Any]) -> str:
    density = _telling(document)
    fixed, best = (ratio_at(document, "neurons", selector, density) for selector in ("static", "oracle"))
    if fixed is None or best is None:
        return ""
    if fixed - 1 <= max(_FIXED * (best - 1), SMALL - 1):
        return (
            f"A fixed set of {percent(density)} of the neurons does about as well ({loss(fixed)} perplexity): on this text "
            f"the sparsity is not contextual, and the others could be pruned."
        )
    return (
        f"The choice must follow the input: a fixed set of {percent(density)} of the neurons costs {loss(fixed)} "
        f"perplexity, one chosen per token {loss(best)}."
    )


def _gate(document: Mapping[str, Any]) -> str:
    density = _telling(document)
    gate = ratio_at(document, "neurons", "threshold", density)
    if gate is None or not document["shape"]["gated"]:
        return ""
    return f"Choosing by the gate alone, {percent(density)} of the neurons cost {loss(gate)} perplexity."


def _heads(document: Mapping[str, Any]) -> str:
    best = reach(document, "heads", "oracle", SMALL)
    half = ratio_at(document, "heads", "oracle", 0.5)
    head = f"Heads: {percent(best)} of them suffice" if best < 1 else "Heads: nearly all are needed"
    return f"{head}; half of them cost {loss(half)} perplexity." if half is not None else f"{head}."


def _batches(document: Mapping[str, Any]) -> str:
    sparse = [entry for entry in document["overlap"]["neurons"] if entry["density"] < 0.22]
    for union in sparse[-1]["unions"] if sparse else ():
        if union["batch"] == 8:
            return (
                f"Batches: 8 unrelated tokens of {percent(sparse[-1]['density'])} each touch {percent(union['mean'])} of "
                f"the neurons together ({percent(union['chance'])} if their sets were random)."
            )
    return ""


def _look_ahead(document: Mapping[str, Any]) -> str:
    nearest = document["similarity"]["mlp"][:1]
    if not nearest:
        return ""
    mean = nearest[0]["mean"]
    judged = "slowly, which look-ahead needs" if mean >= 0.9 else "fast, which is hard on look-ahead"
    return f"The residual stream changes {judged}: cosine {mean:.2f} from one layer to the next."


def _telling(document: Mapping[str, Any]) -> float:
    """The density at which selectors are compared: what the oracle reaches, or half."""
    best = _reached(document)
    return best if best < 1 else 0.5


def _reached(document: Mapping[str, Any]) -> float:
    """The density that the oracle reaches without loss; failing that, with a loss that may be borne; 1: neither."""
    best = reach(document, "neurons", "oracle", SMALL)
    return best if best < 1 else reach(document, "neurons", "oracle", LARGE)
