"""What can be measured: a real model on a text, or a shape with synthetic weights."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dejavu.bench.plans import suited_codec
from dejavu.bench.runner import Subject
from dejavu.bench.shapes import shape
from dejavu.engine import NativeExecutor, synthetic
from dejavu.errors import InputError
from dejavu.inventory import inventory
from dejavu.models.loading import fetch, open_model
from dejavu.models.spec import LocalSpec, parse_spec
from dejavu.plan import AccessPlan, choose_plan
from dejavu.plan.choice import OWN, own_plans
from dejavu.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dejavu.bench.cases import Setting
    from dejavu.bench.timing import TimedExecutor
    from dejavu.models.config import ModelConfig
    from dejavu.models.progress import Progress

_SYNTHETIC_TOKENS = 4096


def packaged_text() -> str:
    """A short story of about 800 tokens, written for dejavu."""
    return resources.files("dejavu.bench").joinpath("prompt.txt").read_text(encoding="utf-8")


def model_subject(
    spec: str,
    *,
    plans: Sequence[str] | None = None,
    text: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Subject:
    """A real model, fed with `text` (None: `packaged_text`), by `plans` (None: by its own and dense, if it has one).

    Its codec is the one that the first of the plans was made for that says so, else what suits the file.

    Raises:
        InputError: the text is empty.
        DejavuError: the model cannot be fetched or opened.
    """
    path = fetch(spec, offline=offline, progress=progress)
    model = open_model(path)
    try:
        config, tokenizer, weights = model.config, Tokenizer.from_model(model), model.weights
        if plans is None:
            plans = ("off", "auto") if Path(OWN) in own_plans(path) else ("off",)
        codec = suited_codec(plans, weights, path)
        fingerprint = weights.fingerprint
    finally:
        model.close()
    tokens = np.asarray(tokenizer.encode(packaged_text() if text is None else text), np.int32)
    if not tokens.size:
        raise InputError("the text is empty", fix="pass a text with words in it")

    def choose(setting: Setting) -> AccessPlan | None:
        opened = open_model(path)
        try:
            return choose_plan(setting.plan, opened.weights, setting.codec, path)
        finally:
            opened.close()

    def load(setting: Setting) -> TimedExecutor:
        plan = choose(setting)
        executor = NativeExecutor.load(
            path,
            codec=setting.codec,
            kv_dtype=setting.kv_dtype,
            leading=plan.leading if plan is not None else 0,
            threads=setting.threads,
            progress=progress,
        )
        return _by_plan(executor, plan)

    # a path says more about the machine than about the model
    name = path.name if isinstance(parse_spec(spec), LocalSpec) else spec
    subject = _subject(name, config, tokens, load, choose)
    return replace(subject, codec=codec, plans=tuple(plans), fingerprint=fingerprint, path=path)


def shape_subject(name: str) -> Subject:
    """Synthetic weights of a known shape, fed with random tokens."""
    config = shape(name)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, _SYNTHETIC_TOKENS, dtype=np.int32)

    def choose(setting: Setting) -> AccessPlan | None:
        return None if setting.plan in ("off", "auto") else AccessPlan.load(Path(setting.plan))

    def load(setting: Setting) -> TimedExecutor:
        plan = choose(setting)
        executor = synthetic(
            config,
            setting.codec,
            leading=plan.leading if plan is not None else 0,
            kv_dtype=setting.kv_dtype,
            threads=setting.threads,
        )
        return _by_plan(executor, plan)

    return replace(_subject(name, config, tokens, load, choose), synthetic=True)


def _by_plan(executor: NativeExecutor, plan: AccessPlan | None) -> NativeExecutor:
    """The executor with its plan set; closed if it cannot run that."""
    try:
        executor.set_plan(plan)
    except BaseException:
        executor.close()
        raise
    return executor


def _subject(
    name: str,
    config: ModelConfig,
    tokens: NDArray[np.int32],
    load: Callable[[Setting], TimedExecutor],
    choose: Callable[[Setting], AccessPlan | None],
) -> Subject:
    parts = inventory(config)
    return Subject(
        name=name,
        parameters=sum(part.parameters for part in parts.values()),
        max_context=config.max_context,
        size=lambda codec: sum(part.bytes[codec] for part in parts.values()),
        tokens=tokens,
        load=load,
        choose=choose,
    )
