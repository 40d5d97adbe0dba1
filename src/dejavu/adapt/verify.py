"""`Verifier`: what plans cost, by the native engine on held-out text."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from dejavu.adapt.distill import VALIDATION_TOKENS
from dejavu.engine import NativeExecutor
from dejavu.engine.layout import sections
from dejavu.evaluation.perplexity import Document, measure_perplexity

if TYPE_CHECKING:
    from pathlib import Path

    from dejavu.codecs import Codec
    from dejavu.evaluation.perplexity import Perplexity, ScoringPath
    from dejavu.plan import AccessPlan
    from dejavu.training.progress import Progress
    from dejavu.training.stream import TokenStream

VERIFY_TOKENS = 20_000
"""Held-out text."""
BASE_CODEC: Codec = "bf16"
"""Of the dense original that all is compared with."""


_PATHS: tuple[ScoringPath, ScoringPath] = ("prefill", "masked")
"""Dense, and by a plan."""


class Verifier:
    """Perplexities over that of the dense original.

    Args:
        original: where it lies.
        stream: the text; documents are taken that the curve was not, where there are enough of them.
        codec: of what is measured.
        threads: of the engine.
        progress: told of the tokens.
    """

    def __init__(
        self, original: Path, stream: TokenStream, codec: Codec, threads: int, progress: Progress
    ) -> None:
        self._original = original
        self._codec = codec
        self._threads = threads
        self._progress = progress
        pieces = stream.validation(VERIFY_TOKENS, skip=VALIDATION_TOKENS) or stream.validation(VERIFY_TOKENS)
        self.documents = [Document(tuple(piece.tolist())) for piece in pieces]

    def measure(self, model: Path, plan: AccessPlan | None) -> dict[str, Any]:
        """Figures of `model` in the codec, by `plan` or dense; JSON-able.

        ``touched_share``: bytes that its MLPs read for a token, what is read to choose included, over those of the dense
        model in the same codec, packed without leading bits apart.
        """
        base = self._base
        runs = NativeExecutor.load(
            model,
            codec=self._codec,
            leading=plan.leading if plan is not None else 0,
            threads=self._threads,
            cache=False,
        )
        try:
            runs.set_plan(plan)
            parts = sections(runs.config, self._codec)
            whole = sum(part.nbytes for part in parts if part.name.endswith(".mlp"))
            layers, path = runs.config.n_layers, _PATHS[plan is not None]
            self._progress.start("verifying", base.tokens)
            found = measure_perplexity(runs, self.documents, path=path, progress=self._progress.advance)
            neurons = [1.0] * layers if plan is None else runs.last_stats["neurons"]
            touched = runs.touched_bytes(0)
        finally:
            runs.close()
        return {
            "tokens": base.tokens,
            "base_codec": BASE_CODEC,
            "base_ppl": base.perplexity,
            "ppl_ratio": found.ratio(base),
            "density": sum(neurons) / layers,
            "densities": neurons,
            "touched_share": (touched["mlp"] + touched.get("predictors", 0)) / whole,
        }

    @cached_property
    def _base(self) -> Perplexity:
        self._progress.start("verifying: the original", sum(document.scored for document in self.documents))
        runs = NativeExecutor.load(self._original, codec=BASE_CODEC, threads=self._threads, cache=False)
        try:
            return measure_perplexity(runs, self.documents, progress=self._progress.advance)
        finally:
            runs.close()
