"""`analyze`: all figures of one model on one text, as a JSON-able document.

The text is streamed piece by piece; only sums are kept. Three passes: dense over the calibration half (which neurons and
heads are used on the whole), dense over the evaluation half (everything about the insides), and the evaluation half once
per point of the curves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.analysis.blocks import Blocks
from dejavu.analysis.curves import measure_run, plan_runs
from dejavu.analysis.overlap import Overlap
from dejavu.analysis.pieces import inputs
from dejavu.analysis.similarity import Similarity
from dejavu.analysis.usage import Usage, Zeros
from dejavu.analysis.verdict import verdict
from dejavu.evaluation.perplexity import measure_perplexity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dejavu.analysis.pieces import Pieces
    from dejavu.evaluation.perplexity import Document
    from dejavu.executor import Executor
    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights

SCHEMA = 1
"""Version of the document's layout."""
_SAMPLED = 4  # pieces for errors of the blocks and for attention: the costly part


def workload(pieces: Pieces, config: ModelConfig) -> int:
    """Tokens that `analyze` runs: the sum of what it tells `progress`."""
    runs = 1 + len(plan_runs(config.n_heads))
    return _tokens(pieces.calibration) + _tokens(pieces.evaluation) + runs * _scored(pieces.evaluation)


def analyze(
    executor: Executor,
    weights: Weights,
    pieces: Pieces,
    *,
    facts: Mapping[str, Any],
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure the model.

    Args:
        executor: runs the model; is left without a plan.
        weights: the same model's own tensors.
        pieces: the text.
        facts: goes into the document as it is: names of model and text, machine, date, ...
        seed: of random selections and of samples.
        progress: called with the number of tokens run since the last call; `workload` is their sum.

    Raises:
        NumericsError: a token's probability is NaN or zero.
    """
    config = executor.config
    executor.set_plan(None)
    usage = Usage(config)
    for piece in pieces.calibration:
        usage.add(executor.trace(inputs(piece), want=("hidden", "head_norm")))
        progress(len(piece.tokens))
    insides = _insides(executor, weights, pieces.evaluation, usage, seed, progress)
    document = {
        "schema": SCHEMA,
        **facts,
        "seed": seed,
        "fingerprint": weights.fingerprint,
        "shape": _shape(config),
        "tokens": {
            "calibration": _tokens(pieces.calibration),
            "evaluation": _tokens(pieces.evaluation),
            "pieces": len(pieces.evaluation),
            "piece": max(len(piece.tokens) for piece in pieces.evaluation),
        },
        "quality": _quality(executor, weights.fingerprint, pieces.evaluation, usage, seed, progress),
        **insides,
    }
    return {**document, "verdict": verdict(document)}


def _insides(
    executor: Executor,
    weights: Weights,
    pieces: Sequence[Document],
    usage: Usage,
    seed: int,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """What the traces of the dense model show."""
    config = executor.config
    zeros, similarity, blocks = Zeros(config), Similarity(config), Blocks(config, weights, usage, seed)
    neurons, heads = Overlap(usage.neurons, len(pieces), seed), Overlap(usage.heads, len(pieces), seed)
    sampled = set(np.linspace(0, len(pieces) - 1, min(_SAMPLED, len(pieces))).round().astype(int).tolist())
    for number, piece in enumerate(pieces):
        trace = executor.trace(inputs(piece), want=("attn_input", "mlp_input", "gate", "hidden", "head_norm"))
        zeros.add(trace)
        similarity.add(trace)
        neurons.add(np.abs(trace.hidden))
        heads.add(trace.head_norm)
        if number in sampled:
            blocks.add(trace)
        progress(len(piece.tokens))
    return {
        "zeros": zeros.result(),
        "similarity": similarity.result(),
        "overlap": {"neurons": neurons.result(), "heads": heads.result()},
        **blocks.result(),
    }


def _quality(
    executor: Executor,
    fingerprint: str,
    pieces: Sequence[Document],
    usage: Usage,
    seed: int,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Perplexity under every plan of the two-pass test."""
    longest = max(len(inputs(piece)) for piece in pieces)
    dense = measure_perplexity(executor, pieces, path="prefill", window=max(2, longest), progress=progress)
    points = [
        measure_run(executor, fingerprint, run, usage, pieces, dense, seed=seed, progress=progress)
        for run in plan_runs(executor.config.n_heads)
    ]
    return {"dense_perplexity": dense.perplexity, "points": [point.to_dict() for point in points]}


def _shape(config: ModelConfig) -> dict[str, Any]:
    return {
        "family": config.family,
        "layers": config.n_layers,
        "d_model": config.d_model,
        "neurons": config.base_neurons,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "vocabulary": config.vocab_size,
        "activation": config.activation,
        "gated": config.gated,
    }


def _tokens(pieces: Sequence[Document]) -> int:
    return sum(len(piece.tokens) for piece in pieces)


def _scored(pieces: Sequence[Document]) -> int:
    return sum(piece.scored for piece in pieces)
