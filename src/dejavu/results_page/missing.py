"""What the page would show besides, and the commands that make it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from dejavu.results_page import frontier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dejavu.results_page.collection import Collection

_TOGETHER = "dejavu report eval.json bench.json PLAN"


def missing(collection: Collection) -> Iterator[tuple[str, str]]:
    """Sentences, each with a command. Of synthetic weights only the speed can be known."""
    if collection.synthetic:
        return
    model = shlex.quote(collection.model)
    evals, benches, plans = (collection.of(kind) for kind in ("eval", "bench", "plan"))
    planned = " --plan off --plan PLAN" if plans else ""
    if not collection.of("frontier") and not frontier.from_runs(collection):
        why = (
            "no run has both a perplexity beside its base and a speed"
            if evals and benches
            else "it needs both"
        )
        yield f"The frontier of quality and speed is not drawn: {why}.", _TOGETHER
    if frontier.untold(collection):
        yield (
            "A plan was timed that the frontier leaves out: which one it is, the folder of the plan would tell.",
            _TOGETHER,
        )
    if not any(run["tasks"] for source in evals for run in source.data["runs"]):
        command = f"dejavu eval {model} --tasks paper --task-folder TASKS{planned} -o eval.json"
        yield "No accuracies on tasks were given.", command
    if not any(run["texts"] for source in evals for run in source.data["runs"]):
        yield "No perplexities were given.", f"dejavu eval {model} --text FILE{planned} -o eval.json"
    if not benches:
        yield "No speeds were given.", f"dejavu bench {model} --codec bf16,int8,int4 --json > bench.json"
    if not plans:
        yield "No access plan was given.", f"dejavu train {model} --text FILE --density 0.5 -o PLAN"
    if not collection.of("analysis"):
        yield (
            "Whether contextual sparsity exists in this model was not measured.",
            f"dejavu analyze {model} --text FILE -o analysis",
        )
    if not collection.shows_adapted:
        yield (
            "The model was not adapted to sparse MLPs, or its folder was not given.",
            f"dejavu adapt {model} --text FILE --density 0.33 --hours 4 -o adapted",
        )
