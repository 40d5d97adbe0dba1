"""Plans of a model as it is, to hold adapted ones against: those of `dejavu train --selector sketch --uniform`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dejavu.engine import NativeExecutor
from dejavu.nested import stored_bits
from dejavu.plan import AccessPlan, LayerPlan, Sketch
from dejavu.training.calibrate import Family, calibrate
from dejavu.training.cost import Cost
from dejavu.training.inputs import BlockInputs
from dejavu.training.probe import Probe
from dejavu.training.recipe import CALIBRATION_TOKENS
from dejavu.training.scores import Scores
from dejavu.training.search import Search, combine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dejavu.adapt.options import ValuesName
    from dejavu.codecs import Codec
    from dejavu.executor import Trace
    from dejavu.models.loading import OpenModel
    from dejavu.training.progress import Progress
    from dejavu.training.stream import TokenStream

SETTLE_TOKENS = 2048
"""Held-out text on which thresholds are corrected for what sparse layers do to each other."""


def uniform_sketches(
    opened: OpenModel,
    stream: TokenStream,
    densities: Sequence[float],
    *,
    bits: int,
    values: ValuesName,
    codec: Codec,
    threads: int,
    progress: Progress,
) -> list[AccessPlan]:
    """A plan per density: every layer chooses by sketches, with thresholds set on the text for that density.

    Args:
        opened: the model.
        stream: the text.
        densities: of the plans.
        bits: of the sketches.
        values: what selected neurons hold.
        codec: in which the model is held.
        threads: of the engine.
        progress: told of the tokens.
    """
    config, weights = opened.config, opened.weights
    dense = [LayerPlan()] * config.n_layers
    runs = NativeExecutor.load(
        opened.path, codec=codec, leading=stored_bits([bits]), threads=threads, cache=False
    )
    try:
        pieces = next(stream.batches(CALIBRATION_TOKENS))[0]
        progress.start("calibrating plans of the original", sum(map(len, pieces)))

        def traces() -> Iterator[Trace]:
            for piece in pieces:
                yield runs.trace(piece, want=["mlp_input"])
                progress.advance(len(piece))

        family = Family(
            f"sketch{bits}", "neurons", (Sketch(bits=bits, density=1.0, values=values),) * config.n_layers
        )
        scores = Scores(config, weights, codec, BlockInputs(config, weights))
        calibrations = calibrate([family], scores, traces())
        probe = Probe(runs, stream.validation(SETTLE_TOKENS))
        search = Search(weights.fingerprint, probe, calibrations, Cost(config, codec, stored_bits([bits])))
        found = []
        for density in densities:
            layers = combine(dense, search.settle(search.uniform(density), dense))
            name = f"sketch density {density:g}"
            found.append(AccessPlan(model=weights.fingerprint, layers=tuple(layers), name=name))
        return found
    finally:
        runs.close()
