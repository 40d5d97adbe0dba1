"""`sketch_logits`: a plan whose logits come from the leading bits of the head's rows, but for the best ones."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import PlanError
from dejavu.evaluation.perplexity import Document, measure_perplexity
from dejavu.plan import VocabularySketch
from dejavu.training.stream import TokenStream

if TYPE_CHECKING:
    from dejavu.plan import AccessPlan
    from dejavu.training.corpus import Corpus
    from dejavu.training.progress import Progress
    from dejavu.training.subject import Subject

MEAN_TOKENS = 16_384
"""Text over which the mean of what the head multiplies is taken."""
MIN_TOKENS = 1024
"""Shortest text that it is taken over."""


def sketch_logits(
    subject: Subject,
    plan: AccessPlan,
    corpus: Corpus,
    *,
    exact: int,
    verify_tokens: int,
    progress: Progress,
) -> AccessPlan:
    """`plan` with a `VocabularySketch` of as many bits as its sketches have apart, its mean taken under the plan.

    The evidence gains ``vocabulary``: tokens of the mean (``calibration``) and of held-out text (``verification``); the
    mean's squared length over the mean squared length (``mean_share``); and ``cost``, the perplexity on held-out text over
    that by `plan`.

    Args:
        subject: the model, nested as the plan needs it; its executor is left dense.
        plan: is for this model.
        corpus: the text.
        exact: how many of the best logits are exact.
        verify_tokens: of held-out text.
        progress: told of the stages.

    Raises:
        PlanError: the plan is for another model, or has no sketches of neurons.
        InputError: too little text.
        NumericsError: the plan leads to NaN.
    """
    plan.check_fits(subject.opened.config, subject.fingerprint)
    if not plan.leading:
        raise PlanError(
            f"the plan {plan.name!r} has no sketches, so that no leading bits lie apart for it",
            fix="take a plan by `dejavu train --selector sketch` or `dejavu adapt`",
        )
    runs = subject.executor
    stream = TokenStream(corpus, subject.tokenizer, context=subject.opened.config.max_context)
    stream.require(MIN_TOKENS)
    pieces = next(stream.batches(MEAN_TOKENS))[0]
    tokens = sum(map(len, pieces))
    progress.start("mean", tokens)
    total, squares = np.zeros(subject.opened.config.embed_dim, np.float64), 0.0  # [E]
    runs.set_plan(plan)
    for piece in pieces:
        x = runs.trace(piece, want=("head_input", "chosen")).head_input.astype(np.float64)  # [t, E]
        total, squares = total + x.sum(axis=0), squares + float((x * x).sum())
        progress.advance(len(piece))
    mean = total / tokens
    sketch = VocabularySketch(bits=plan.leading, exact=exact, mean=mean.astype(np.float32))
    found = dataclasses.replace(plan, vocabulary=sketch)
    held_out = [Document(tuple(piece.tolist())) for piece in stream.validation(verify_tokens)]
    progress.start("cost", 2 * sum(document.scored for document in held_out))
    measured = []
    for wanted in (plan, found):
        runs.set_plan(wanted)
        measured.append(measure_perplexity(runs, held_out, path="masked", progress=progress.advance))
    runs.set_plan(None)
    before, after = measured
    evidence = {
        "calibration": tokens,
        "verification": before.tokens,
        "mean_share": float(mean @ mean) * tokens / squares,
        "cost": after.ratio(before),
    }
    return dataclasses.replace(found, evidence={**plan.evidence, "vocabulary": evidence})
