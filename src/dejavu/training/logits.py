"""`sketch_logits`: a plan whose logits come from the leading bits of the head's rows, but for the best ones.

What leading bits miss of a row matters where the head's inputs vary most. So the mean of these inputs is taken over some
text, and the directions in which they differ most from it (principal components): of SmolLM2-135M's, two fifths of the
squared length are the mean's, and 32 directions of 576 hold two thirds of the rest.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from dejavu.codecs import decode, embed_codec, encode
from dejavu.errors import InputError
from dejavu.evaluation.perplexity import Document, measure_perplexity
from dejavu.nested import estimate, leading_bits
from dejavu.plan import AccessPlan, Dense, VocabularySketch
from dejavu.training.stream import TokenStream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dejavu.training.corpus import Corpus
    from dejavu.training.progress import Progress
    from dejavu.training.subject import Subject

CALIBRATION_TOKENS = 16_384
"""Text over which mean and directions of what the head multiplies are taken."""
MIN_TOKENS = 1024
"""Shortest text that they are taken over."""
BITS = 4
"""Leading bits that are read of all rows."""
DIRECTIONS = 32
"""A group of their codes: what rows miss along so many directions takes as much memory as 32 weights of each."""
EXACT = 1024
"""Logits that are exact unless the user says otherwise, or there are fewer."""
_ROWS = 4096  # of the head at once


def sketch_logits(
    subject: Subject,
    plan: AccessPlan | None,
    corpus: Corpus,
    *,
    exact: int,
    verify_tokens: int,
    progress: Progress,
) -> AccessPlan:
    """`plan` with a `VocabularySketch`, its mean and directions taken under the plan.

    The evidence gains ``vocabulary``: tokens of the calibration (``calibration``) and of held-out text
    (``verification``); the mean's squared length over the mean squared length (``mean_share``), and the directions' share
    of what is left (``direction_share``); and ``cost``, the perplexity on held-out text over that by `plan`.

    Args:
        subject: the model, nested as the plan needs it; its executor is left dense.
        plan: is for this model; None: one that is dense but for the logits.
        corpus: the text.
        exact: how many of the best logits are exact.
        verify_tokens: of held-out text.
        progress: told of the stages.

    Raises:
        PlanError: the plan is for another model.
        InputError: too little text, more exact logits than there are, or a codec whose head has no leading bits.
        NumericsError: the plan leads to NaN.
    """
    if plan is None:
        plan = AccessPlan.uniform(subject.fingerprint, subject.opened.config.n_layers, name="logits")
    plan.check_fits(subject.opened.config, subject.fingerprint)
    plan = dataclasses.replace(plan, vocabulary=Dense())  # what the new logits are compared with
    leading_bits(embed_codec(subject.codec))  # raises where there are none
    vocabulary = subject.opened.config.vocab_size
    if exact > vocabulary:
        raise InputError(
            f"{exact} logits are to be exact; the model has {vocabulary} tokens",
            fix=f"give at most --exact {vocabulary}",
        )
    runs = subject.executor
    stream = TokenStream(corpus, subject.tokenizer, context=subject.opened.config.max_context)
    stream.require(MIN_TOKENS)
    held_out = [Document(tuple(piece.tolist())) for piece in stream.validation(verify_tokens)]
    pieces = next(stream.batches(CALIBRATION_TOKENS))[0]
    tokens = sum(map(len, pieces))
    progress.start("calibration", tokens)
    width = subject.opened.config.embed_dim
    total, products = np.zeros(width), np.zeros((width, width))  # [E], [E, E]
    runs.set_plan(plan)
    for piece in pieces:
        x = runs.trace(piece, want=("head_input", "chosen")).head_input.astype(np.float64)  # [t, E]
        total, products = total + x.sum(axis=0), products + x.T @ x
        progress.advance(len(piece))
    mean = total / tokens
    variances, components = np.linalg.eigh(products / tokens - np.outer(mean, mean))  # rising; columns
    directions = components[:, ::-1][:, :DIRECTIONS].T.astype(np.float32)  # [J, E]
    sketch = VocabularySketch(
        bits=BITS,
        exact=exact,
        mean=mean.astype(np.float32),
        directions=directions,
        missing=_missing(subject, directions),
    )
    found = dataclasses.replace(plan, vocabulary=sketch)
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
        "mean_share": float(mean @ mean * tokens / np.trace(products)),
        "direction_share": float(variances[::-1][:DIRECTIONS].sum() / variances.sum()),
        "cost": after.ratio(before),
    }
    return dataclasses.replace(found, evidence={**plan.evidence, "vocabulary": evidence})


def _missing(subject: Subject, directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the leading bits of the head's rows miss along `directions` [J, E]: [V, J]."""
    config, weights = subject.opened.config, subject.opened.weights
    name, found = "embed.weight" if config.tied_head else "head.weight", []
    for start in range(0, config.vocab_size, _ROWS):
        rows = weights.read(name, start, min(start + _ROWS, config.vocab_size))
        encoded = encode(embed_codec(subject.codec), rows)
        found.append((decode(encoded) - estimate(encoded, BITS)) @ directions.T)
    return np.concatenate(found)
