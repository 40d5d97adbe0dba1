"""How far a model's predictions are from those of its dense base, token by token over a text.

With p the base's distribution of the next token and q the model's: KL(p || q) in nats, and whether both have the same
likeliest token. Windows are those of `dejavu.evaluation.perplexity`; both models read a window side by side, in blocks,
so that memory does not grow with the text. The nll of both is taken along: perplexity and its ratio come from one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.errors import NumericsError
from dejavu.evaluation.metrics import Estimate, exp, mean_per_token
from dejavu.evaluation.perplexity import logits_chunk, token_nll, windows
from dejavu.llm import CHUNK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dejavu.evaluation.perplexity import Document
    from dejavu.executor import Executor


@dataclass(frozen=True, eq=False)
class Window:
    """A piece of text as it is fed: the last `targets.size` of `inputs` predict `targets`, int32."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]


def cut(documents: Sequence[Document], window: int) -> list[Window]:
    """Windows of all documents, without overlap."""
    return [
        Window(inputs, targets)
        for document in documents
        for inputs, targets in windows(document, window, window - len(document.prefix))
    ]


def measure_window(
    executor: Executor, base: Executor | None, window: Window, *, sparse: bool = False
) -> dict[str, Any]:
    """Score one window; plain JSON-able values.

    Args:
        executor: the model.
        base: the dense model to compare with; None: nll only.
        window: within the context of both.
        sparse: each token of the model selects for itself by the executor's plan. The base is always dense.

    Returns:
        tokens; nll: its sum. With a base: base_nll, same_top1 (a count), kl (a list, one value per token).

    Raises:
        NumericsError: a token's probability is NaN or zero.
    """
    pairs = [(executor, executor.new_cache(), sparse)]
    if base is not None:
        pairs.append((base, base.new_cache(), False))
    context = window.inputs.size - window.targets.size
    chunk = logits_chunk(executor.config.vocab_size)
    nll, same, kl = np.zeros(len(pairs)), 0, []
    for start in range(0, context, CHUNK):
        for model, cache, masked in pairs:
            model.prefill(window.inputs[start : min(start + CHUNK, context)], cache, sparse=masked)
    for start in range(0, window.targets.size, chunk):
        block = window.inputs[context + start : context + start + chunk]
        targets = window.targets[start : start + chunk]
        logits = [
            model.prefill(block, cache, all_logits=True, sparse=masked) for model, cache, masked in pairs
        ]
        nll += [token_nll(rows, targets).sum() for rows in logits]
        if base is not None:
            same += int((logits[0].argmax(axis=1) == logits[1].argmax(axis=1)).sum())
            kl += token_kl(logits[1], logits[0]).tolist()
    if not np.isfinite([*nll, *kl]).all():
        raise NumericsError(
            "a token of the text has probability NaN or zero",
            fix="check the weights with `dejavu info MODEL`, and try --codec f32",
        )
    found: dict[str, Any] = {"tokens": int(window.targets.size), "nll": float(nll[0])}
    if base is not None:
        found |= {"base_nll": float(nll[1]), "same_top1": same, "kl": [float(f"{v:.6g}") for v in kl]}
    return found


def token_kl(base: NDArray[np.float32], model: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(softmax(base) || softmax(model)) in nats, row by row: [t, vocab] twice -> [t], in float64, at least 0."""
    out = np.empty(len(base), np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for row in range(len(base)):
            p, q = (_log_softmax(logits[row]) for logits in (base, model))
            out[row] = max((np.exp(p) * (p - q)).sum(), 0.0)
    return out


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    values = logits.astype(np.float64)  # [vocab]
    values -= values.max()
    return np.asarray(values - np.log(np.exp(values).sum()))


def text_metrics(found: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Figures over windows that `measure_window` scored, in any order.

    perplexity; against a base also base_perplexity, ppl_ratio, same_top1 (a share), and kl_mean, kl_median, kl_p99.9.
    """
    tokens = [window["tokens"] for window in found]
    nll = [window["nll"] for window in found]
    metrics = {"perplexity": exp(mean_per_token(nll, tokens))}
    if all("kl" in window for window in found):
        base = [window["base_nll"] for window in found]
        kl = np.concatenate([window["kl"] for window in found])
        metrics |= {
            "base_perplexity": exp(mean_per_token(base, tokens)),
            "ppl_ratio": exp(mean_per_token([a - b for a, b in zip(nll, base, strict=True)], tokens)),
            "same_top1": mean_per_token([window["same_top1"] for window in found], tokens),
            "kl_mean": mean_per_token([float(np.sum(window["kl"])) for window in found], tokens),
            "kl_median": Estimate(float(np.median(kl))),
            "kl_p99.9": Estimate(float(np.quantile(kl, 0.999))),
        }
    return metrics
