"""The two-pass test, end to end: perplexity when only some neurons or heads are computed.

A first pass is dense and says what would have mattered; the second computes only that (Deja Vu, section 3.1). An oracle
selector is both passes at once: each token's scores come from the full computation of the very block that then runs partly.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dejavu.analysis.sets import count_at
from dejavu.evaluation.perplexity import measure_perplexity
from dejavu.plan import AccessPlan, Dense, LayerPlan, Oracle, Random, Static, Threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dejavu.analysis.usage import Usage
    from dejavu.evaluation.perplexity import Document, Perplexity
    from dejavu.executor import Executor
    from dejavu.plan import HeadSelector, NeuronSelector

Part = Literal["neurons", "heads", "both"]
Selector = Literal["oracle", "threshold", "static", "random"]
SELECTORS: tuple[Selector, ...] = get_args(Selector)
DENSITIES = (0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)


@dataclass(frozen=True)
class Run:
    """One plan of the test. Threshold selects neurons only."""

    part: Part
    selector: Selector
    density: float


@dataclass(frozen=True)
class Point:
    """What a run measured."""

    part: Part
    selector: Selector
    density: float
    """Asked for."""
    neurons: float
    """Mean share of the neurons that was selected."""
    heads: float
    ppl_ratio: float
    """Perplexity over the dense one on the same text."""
    error: float | None
    """Standard error of `ppl_ratio`, from the spread over the pieces; None with fewer than four."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return asdict(self)


def plan_runs(n_heads: int) -> list[Run]:
    """All runs, without those that select as many heads as the one before."""
    counts = {count_at(density, n_heads): density for density in reversed(DENSITIES)}
    head_densities = sorted((d for count, d in counts.items() if count < n_heads), reverse=True)
    runs = [Run("neurons", selector, d) for selector in SELECTORS for d in DENSITIES]
    for selector in SELECTORS:
        if selector != "threshold":
            runs += [Run("heads", selector, d) for d in head_densities]
            runs += [Run("both", selector, d) for d in DENSITIES]
    return runs


def measure_run(
    executor: Executor,
    fingerprint: str,
    run: Run,
    usage: Usage,
    pieces: Sequence[Document],
    dense: Perplexity,
    *,
    seed: int,
    progress: Callable[[int], None],
) -> Point:
    """Score the pieces under one plan; the executor is left dense. `dense` scored the same pieces."""
    executor.set_plan(build_plan(fingerprint, run, usage, seed))
    try:
        found = measure_perplexity(executor, pieces, path="masked", window=dense.window, progress=progress)
        stats = executor.last_stats
    finally:
        executor.set_plan(None)
    return Point(
        run.part,
        run.selector,
        run.density,
        neurons=float(np.mean(stats["neurons"])),
        heads=float(np.mean(stats["heads"])),
        ppl_ratio=found.ratio(dense),
        error=ratio_error(found, dense),
    )


def build_plan(fingerprint: str, run: Run, usage: Usage, seed: int) -> AccessPlan:
    """The access plan of a run; static selections take the most used of `usage`."""
    layers = []
    for neurons, heads in zip(usage.neurons, usage.heads, strict=True):
        neuron_selector: NeuronSelector = Dense()
        head_selector: HeadSelector = Dense()
        if run.part != "heads":
            neuron_selector = (
                Threshold(density=run.density)
                if run.selector == "threshold"
                else _selector(run, neurons, seed)
            )
        if run.part != "neurons":
            head_selector = _selector(run, heads, seed)
        layers.append(LayerPlan(neuron_selector, head_selector))
    name = f"{run.part}-{run.selector}-{run.density:g}"
    return AccessPlan(model=fingerprint, layers=tuple(layers), name=name)


def _selector(run: Run, usage: NDArray[np.float64], seed: int) -> Oracle | Static | Random:
    if run.selector == "oracle":
        return Oracle(density=run.density)
    if run.selector == "random":
        return Random(density=run.density, seed=seed)
    chosen = np.argsort(-usage, kind="stable")[: count_at(run.density, len(usage))]
    return Static(indices=np.sort(chosen).astype(np.int32))


def ratio_error(found: Perplexity, dense: Perplexity) -> float | None:
    """Standard error of the ppl ratio: pieces are the independent samples, their lengths the weights."""
    pairs = list(zip(found.documents, dense.documents, strict=True))
    if len(pairs) < 4:
        return None
    mean = found.nll - dense.nll
    total = sum(a.tokens for a, _ in pairs)
    spread = math.fsum((a.nll - b.nll - a.tokens * mean) ** 2 for a, b in pairs)
    return found.ratio(dense) * math.sqrt(spread * len(pairs) / (len(pairs) - 1)) / total
