"""`train_plan`: from a model and text to an access plan with its evidence. The order of the steps is visible here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dejavu.errors import InputError
from dejavu.nested import leading_bits, stored_bits
from dejavu.plan import AccessPlan, KvPolicy, LayerPlan, Oracle, Sketch, Threshold
from dejavu.training.calibrate import Calibration, Family, calibrate
from dejavu.training.compensator import fit_compensators
from dejavu.training.cost import Cost
from dejavu.training.evidence import SetEvidence, describe
from dejavu.training.inputs import BlockInputs
from dejavu.training.options import DEFAULT_HEADS_RANK, DEFAULT_TOKENS
from dejavu.training.probe import Probe
from dejavu.training.scores import Scores
from dejavu.training.search import Allotment, Search, combine
from dejavu.training.stream import TokenStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dejavu.executor import Trace, TraceField
    from dejavu.training.corpus import Corpus
    from dejavu.training.inputs import Block
    from dejavu.training.low_rank import State, Trained
    from dejavu.training.options import TrainOptions
    from dejavu.training.progress import Progress
    from dejavu.training.stream import Piece
    from dejavu.training.subject import Subject

    Layers = Sequence[LayerPlan]
    Calibrations = dict[Block, list[Calibration]]

CALIBRATION_TOKENS = 8192
"""For thresholds."""
COMPENSATOR_TOKENS = 20_480
"""For compensators."""
MIN_TOKENS = 2048
"""Shortest text that is calibrated on."""
SPREAD = (0.5, 1.0, 1.5)
"""Densities at which the search measures layers, relative to the target."""
HIGHEST_DENSITY = 0.9
"""Of those that are measured."""
RETRIES = 3
"""Times that a plan is made denser when other held-out text shows a higher ratio than asked for."""
DENSER = 0.02
"""By how much each time."""


def train_plan(
    subject: Subject,
    corpus: Corpus,
    options: TrainOptions,
    *,
    checkpoint: Path,
    resume: bool = False,
    command: str = "",
    progress: Progress,
) -> AccessPlan:
    """Train, search and verify.

    A plan that misses the highest ratio on the text that verifies it, also when it was made denser, is returned with both
    figures as evidence.

    Args:
        subject: the model.
        corpus: the text.
        options: what kind of plan is wanted.
        checkpoint: file that keeps an interrupted training of low-rank predictors.
        resume: go on from it.
        command: for the evidence.
        progress: told of the stages.

    Raises:
        InputError: too little text, too high a rank, or a checkpoint in the way or of another training.
        NumericsError: training or the plan leads to NaN.
        CacheError: a checkpoint cannot be written.
        DejavuError: torch is needed and not installed.
    """
    recipe = _Recipe(subject, corpus, options, progress)
    return recipe.run(checkpoint, resume, command)


class _Recipe:
    def __init__(self, subject: Subject, corpus: Corpus, options: TrainOptions, progress: Progress) -> None:
        self._subject = subject
        self._corpus = corpus
        self._options = options
        self._progress = progress
        self._config = subject.opened.config
        weights = subject.opened.weights
        self._stream = TokenStream(corpus, subject.tokenizer, context=self._config.max_context)
        self._inputs = BlockInputs(self._config, weights)
        self._scores = Scores(self._config, weights, subject.codec, self._inputs)
        self._cost = Cost(self._config, subject.codec, stored_bits(options.sketches))

    def run(self, checkpoint: Path, resume: bool, command: str) -> AccessPlan:
        """Train, calibrate, search, compensate, and verify on other text; denser where that shows a higher ratio."""
        options = self._options
        self._check_options()
        self._stream.require(MIN_TOKENS)
        search_pieces, verify_pieces = self._held_out()
        pieces = self._training_text(CALIBRATION_TOKENS)
        if resume and not options.targets:
            raise InputError("nothing is trained that could be resumed", fix="leave --resume out")
        trained = self._train(pieces, checkpoint, resume) if options.targets else None
        calibrations = self._calibrate(pieces, trained)
        probe = Probe(self._subject.executor, search_pieces)
        layers: Layers = [LayerPlan()] * self._config.n_layers
        searches = {block: self._search(probe, found) for block, found in calibrations.items()}
        allotments: dict[Block, Allotment] = {}
        if options.heads_density is not None:
            allotments["heads"] = self._allot(searches["heads"], options.heads_density)
            layers = combine(layers, allotments["heads"])
        search = searches["neurons"]
        allotment = self._allot_neurons(search, layers)
        if options.compensator is not None:
            layers = self._compensate(search, allotment, layers, options.compensator)
            if options.max_ppl_ratio is not None:  # what was gained may go into a lower density
                allotment = search.for_ratio(options.max_ppl_ratio, layers)
                layers = self._compensate(search, allotment, layers, options.compensator)
        held_out = Probe(self._subject.executor, verify_pieces)
        limit = options.max_ppl_ratio
        for attempt in range(RETRIES + 1):
            allotments["neurons"] = allotment
            plan = self._plan(self._correct_thresholds(searches, allotments, layers))
            measured = held_out.measure(plan)
            if limit is None or measured.ratio <= limit or attempt == RETRIES:
                break
            allotment = search.for_density(allotment.density + DENSER)
            if options.compensator is not None:  # other neurons are skipped
                layers = self._compensate(search, allotment, layers, options.compensator)
        sets = self._compare(plan, calibrations, allotments, held_out)
        evidence = describe(plan, measured, sets, self._cost)
        tokens = {
            "training": trained.tokens if trained else 0,
            "calibration": sum(map(len, pieces)),
            "search": probe.tokens,
            "verification": held_out.tokens,
        }
        self._complete(evidence, allotments, trained)
        return dataclasses.replace(plan, evidence=evidence | {"command": command, "tokens": tokens})

    def _complete(
        self, evidence: dict[str, Any], allotments: dict[Block, Allotment], trained: Trained | None
    ) -> None:
        """Add what was wanted of each layer, how well its predictor learned, and the options."""
        for block, allotted in allotments.items():
            for i, record in enumerate(evidence["layers"]):
                record[block] |= {"selector": allotted.families[i], "target": allotted.densities[i]}
        for block, found in (trained.agreement if trained else {}).items():
            for record, agreement in zip(evidence["layers"], found, strict=True):
                record[block]["trained"] = dataclasses.asdict(agreement)
        if self._options.max_ppl_ratio is not None:
            evidence["max_ppl_ratio"] = self._options.max_ppl_ratio
        evidence |= {"seed": self._options.seed, "codec": self._subject.codec}

    def _check_options(self) -> None:
        """Raise `InputError` for sketches that the codec lacks, and for ranks that the maps they are of cannot have."""
        for bits in self._options.sketches:
            if bits not in (found := leading_bits(self._subject.codec)):
                raise InputError(
                    f"--bits {bits}: of {self._subject.codec}, {' or '.join(map(str, found))} leading bits can be read",
                    fix="add --codec int8, or leave --bits out",
                )
        o, most = self._options, min(self._config.d_model, self._config.base_neurons)
        for name, rank, default in (
            ("--rank", o.rank, None),
            ("--heads-rank", o.heads_rank, DEFAULT_HEADS_RANK),
            ("--compensator", o.compensator, None),
        ):
            if rank is not None and rank != default and rank > most:
                raise InputError(
                    f"{name} {rank}: maps of this model have a rank of at most {most}, the lesser of its width "
                    f"{self._config.d_model} and its {self._config.base_neurons} neurons",
                    fix=f"give {name} {most} or less",
                )

    def _held_out(self) -> tuple[list[Piece], list[Piece]]:
        """Held-out text of the search, and other of the evidence. Raises `InputError` where there is not both."""
        wanted = self._options.search_tokens
        search = self._stream.validation(wanted)
        verify = self._stream.validation(self._options.verify_tokens, skip=wanted)
        if not verify:
            raise InputError(
                f"the documents held out to check with have {sum(map(len, search))} tokens; with {wanted} for the "
                "search none are left for the evidence",
                fix="pass more text, or a smaller --search-tokens",
            )
        return search, verify

    def _training_text(self, tokens: int) -> list[Piece]:
        """The beginning of the training text."""
        return next(self._stream.batches(tokens))[0]

    def _train(self, pieces: Sequence[Piece], checkpoint: Path, resume: bool) -> Trained:
        from dejavu.training.examples import Examples
        from dejavu.training.learner import LowRankOptions
        from dejavu.training.low_rank import train_low_rank
        from dejavu.training.missing import import_torch

        o = self._options
        if o.learns == "labels":
            import_torch()  # or say at once that it is missing
        examples = Examples(self._subject.executor, self._inputs, pieces, o.targets, o.lookahead)
        tokens = DEFAULT_TOKENS[o.learns] if o.tokens is None else o.tokens
        options = LowRankOptions(o.targets, tokens, o.learns, o.seed, o.hidden, o.lookahead, o.learning_rate)
        self._progress.start("training", tokens)
        done = 0

        def report(state: State) -> None:
            nonlocal done
            self._progress.advance(state.tokens - done, str(state))
            done = state.tokens

        return train_low_rank(
            examples,
            self._stream,
            options,
            self._subject.opened.weights,
            checkpoint=checkpoint,
            resume=resume,
            settings={
                "model": self._subject.fingerprint,
                "codec": self._subject.codec,
                "text": self._corpus.fingerprint,
                "seed": self._corpus.seed,
            },
            report=report,
        )

    def _families(self, trained: Trained | None) -> list[Family]:
        """What may be chosen from; and of each block first the oracle, whose scores define the labels."""
        o, layers = self._options, self._config.n_layers
        oracle = (Oracle(density=1.0),) * layers
        families = [Family("oracle", "neurons", oracle)]
        if o.selector in ("sketch", "auto"):
            for bits in o.sketches:
                sketch = Sketch(bits=bits, lookahead=o.lookahead, density=1.0, values=o.values)
                families.append(Family(f"sketch{bits}", "neurons", (sketch,) * layers))
        if o.selector in ("threshold", "auto"):
            families.append(Family("threshold", "neurons", (Threshold(density=1.0),) * layers))
        for block, predictors in (trained.predictors if trained else {}).items():
            families.append(Family("low_rank", block, tuple(predictors)))
        return families

    def _calibrate(self, pieces: Sequence[Piece], trained: Trained | None) -> Calibrations:
        found: Calibrations = {}
        traces = self._traces(pieces, "calibration")
        for calibration in calibrate(self._families(trained), self._scores, traces):
            found.setdefault(calibration.family.block, []).append(calibration)
        return found

    def _traces(self, pieces: Sequence[Piece], stage: str) -> Iterator[Trace]:
        want: list[TraceField] = ["mlp_input", "hidden"]
        want += ["gate"] if self._options.selector in ("threshold", "auto") else []
        want += ["attn_input", "head_norm"] if self._options.heads_density is not None else []
        self._progress.start(stage, sum(map(len, pieces)))
        for piece in pieces:
            yield self._subject.executor.trace(piece, want=want)
            self._progress.advance(len(piece))

    def _search(self, probe: Probe, calibrations: Sequence[Calibration]) -> Search:
        usable = [c for c in calibrations if c.family.name != "oracle"]
        return Search(self._subject.fingerprint, probe, usable, self._cost, self._progress)

    def _allot(self, search: Search, density: float) -> Allotment:
        if self._options.uniform:
            return search.uniform(density)
        search.measure_layers(sorted({min(share * density, HIGHEST_DENSITY) for share in SPREAD}))
        return search.for_density(density)

    def _allot_neurons(self, search: Search, layers: Layers) -> Allotment:
        limit = self._options.max_ppl_ratio
        if limit is None:
            return self._allot(search, self._options.target)
        search.measure_layers([share * self._options.target for share in SPREAD])
        return search.for_ratio(limit, layers)

    def _correct_thresholds(
        self, searches: dict[Block, Search], allotments: dict[Block, Allotment], layers: Layers
    ) -> Layers:
        """All selectors in place, their thresholds set for the densities that they have together."""
        for allotment in allotments.values():
            layers = combine(layers, allotment)
        for block, allotment in allotments.items():
            layers = combine(layers, searches[block].settle(allotment, layers))
        return layers

    def _compensate(self, search: Search, allotment: Allotment, layers: Layers, rank: int) -> Layers:
        """`layers` with compensators for what `allotment` skips, where they are worth their bytes."""
        fitted = fit_compensators(
            self._subject.opened,
            allotment.selectors,
            self._scores,
            self._inputs,
            self._traces(self._training_text(COMPENSATOR_TOKENS), "compensators"),
            rank,
        )
        kept = search.worthwhile(allotment, fitted)
        return [dataclasses.replace(layer, compensator=c) for layer, c in zip(layers, kept, strict=True)]

    def _plan(self, layers: Layers) -> AccessPlan:
        o = self._options
        wanted = f"density {o.density:g}" if o.density is not None else f"ratio {o.max_ppl_ratio:g}"
        name = f"{o.selector} {wanted}"
        kv = KvPolicy(o.kv_policy)
        return AccessPlan(model=self._subject.fingerprint, layers=tuple(layers), name=name, kv=kv)

    def _compare(
        self,
        plan: AccessPlan,
        calibrations: Calibrations,
        allotments: dict[Block, Allotment],
        held_out: Probe,
    ) -> SetEvidence:
        """The sets that `plan` selects against the labels at the same density."""
        heads = allotments["heads"].densities if "heads" in allotments else (1.0,) * self._config.n_layers
        sizes = calibrations["neurons"][0]  # the oracle's scores: abs(h)
        zeros = self._config.exact_zeros
        labels = [
            0.0 if zeros else sizes.threshold(i, k) for i, k in enumerate(allotments["neurons"].densities)
        ]
        sets = SetEvidence(plan, self._scores, labels, heads)
        sets.add(self._traces(held_out.pieces, "verification"))
        return sets
