"""From a user's request to results: reads the sweeps, chooses the subject, runs the cases."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dejavu.bench.cases import make_cases, make_tests, name_dense, parse_choices, parse_sweep
from dejavu.bench.peers.contest import PeerCase, make_peer_cases
from dejavu.bench.peers.engines import find_engine
from dejavu.bench.peers.files import PeerFiles
from dejavu.bench.plans import plan_digest
from dejavu.bench.runner import Subject, run_cases
from dejavu.bench.shapes import shape
from dejavu.bench.subjects import model_subject, shape_subject
from dejavu.codecs import CODECS
from dejavu.engine.core import chosen_isa
from dejavu.engine.native import default_threads
from dejavu.environment import describe_machine, versions
from dejavu.errors import InputError
from dejavu.executor import KV_DTYPES
from dejavu.inspection import read_bandwidth
from dejavu.models.sources import DEFAULT_MODEL
from dejavu.texts import read_documents

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dejavu.bench.cases import Setting
    from dejavu.bench.results import Result
    from dejavu.models.progress import Progress


@dataclass(frozen=True)
class Request:
    """What to measure. Numbers and names may be lists with commas."""

    model: str | None = None
    """None, and no `shape`: the default model."""
    shape: str | None = None
    prompt: str = "512"
    steps: str = "128"
    batch: str = "1"
    depth: str = "0"
    repeats: int = 5
    codec: str | None = None
    """None: what the plans were made for, or what suits the model's file; int8 for a shape."""
    kv: str = "f16"
    plan: str | None = None
    """"off", "auto" or folders of access plans; None: off, and auto where the model has a plan of its own."""
    threads: str | None = None
    """None: one per physical core."""
    text: Path | None = None
    """None: the packaged text."""
    offline: bool | None = None
    peers: tuple[str, ...] = ()
    """Names of `dejavu.bench.peers.engines.ENGINES`."""
    peer_python: str = sys.executable
    """A Python that has them."""


@dataclass(frozen=True)
class Outcome:
    """What `run_request` measured."""

    subject: Subject
    results: list[Result]
    peers: list[PeerCase]
    machine: dict[str, object]
    """Facts about it."""
    notes: tuple[str, ...] = ()
    """What was not measured as it was asked for, for people."""


def run_request(
    request: Request, *, progress: Progress | None = None, say: Callable[[str], None] | None = None
) -> Outcome:
    """Measure what `request` asks for.

    Args:
        request: all of it is checked before anything is loaded.
        progress: told of downloads and packing.
        say: called with a description of each step.

    Raises:
        DejavuError: a wrong request, or a model that cannot be used.
    """
    tests = make_tests(
        parse_sweep(request.prompt, name="--prompt"),
        parse_sweep(request.steps, name="--steps"),
        parse_sweep(request.batch, name="--batch", low=1),
        parse_sweep(request.depth, name="--depth"),
    )
    kv_dtypes = parse_choices(request.kv, name="--kv", allowed=KV_DTYPES)
    threads = (
        (default_threads(),)
        if request.threads is None
        else parse_sweep(request.threads, name="--threads", low=1)
    )
    plans = request.plan and tuple(dict.fromkeys(part.strip() for part in request.plan.split(",")))
    codecs = parse_choices(request.codec, name="--codec", allowed=CODECS) if request.codec else None
    engines = [find_engine(name) for name in dict.fromkeys(request.peers)]
    if request.shape is not None:
        if request.model is not None:
            raise InputError("a model and a shape cannot be measured together", fix="give MODEL or --shape")
        if request.text is not None:
            raise InputError("--text does not go with --shape", fix="synthetic weights read random tokens")
        subject = replace(shape_subject(request.shape), plans=plans or ("off",))
    else:
        text = None if request.text is None else "\n\n".join(read_documents(request.text))
        subject = model_subject(
            request.model or DEFAULT_MODEL,
            plans=plans or None,
            text=text,
            offline=request.offline,
            progress=progress,
        )
    cases = make_cases(codecs or (subject.codec,), kv_dtypes, threads, tests, subject.plans)
    planned = dict.fromkeys(case.setting for case in cases if case.setting.plan != "off")
    digests = {setting: plan_digest(subject.choose(setting)) for setting in planned}
    cases, dense = name_dense(cases, lambda setting: digests[setting] is None)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dejavu-bench-"))
        files = PeerFiles(Path(folder), subject.path or shape(str(request.shape)), progress)
        peers = make_peer_cases(engines, cases, python=request.peer_python, files=files)
        for peer in peers:
            stack.callback(peer.contestant.close)
        results = run_cases(
            subject,
            cases,
            repeats=request.repeats,
            read_bandwidth=read_bandwidth(),
            progress=say,
            rivals=peers,
        )
    results = [replace(result, plan_sha256=digests.get(result.case.setting)) for result in results]
    machine = {**asdict(describe_machine()), "isa": chosen_isa(), "versions": versions()}
    return Outcome(subject, results, peers, machine, _notes(subject, dense))


def _notes(subject: Subject, dense: Sequence[Setting]) -> tuple[str, ...]:
    """That settings asked for a plan which there is not."""
    codecs = ", ".join(dict.fromkeys(setting.codec for setting in dense))
    if not codecs:
        return ()
    return (
        f"{subject.name} has no plan of its own for weights in {codecs}: --plan auto is plan off there, measured once",
    )
