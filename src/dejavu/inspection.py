"""Facts for people about this installation and about a model, gathered without reading weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dejavu.engine.core import chosen_isa, load_core
from dejavu.engine.native import default_threads, kv_bytes_per_token
from dejavu.environment import Machine, describe_machine, folder_bytes, versions
from dejavu.errors import DejavuError, InputError
from dejavu.executor import KV_DTYPES
from dejavu.inventory import Part, PartSize, inventory
from dejavu.models.delta import ARRAYS_NAME, DELTA_NAME
from dejavu.models.loading import open_model, read_delta
from dejavu.models.store import cache_root
from dejavu.plan.choice import own_plans
from dejavu.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dejavu.models.config import ModelConfig
    from dejavu.models.loading import OpenModel
    from dejavu.plan import AccessPlan


@dataclass(frozen=True)
class Environment:
    """What `describe_environment` found."""

    machine: Machine
    isas: tuple[str, ...]
    """Instruction sets that this build and this machine support; empty without a compiled core."""
    isa: str | None
    """The one in use."""
    threads: int
    """Threads used by default."""
    read_bandwidth: float | None
    """Bytes/s of sequential reading with that many threads, measured now."""
    versions: Mapping[str, str]
    cache_folder: Path
    cache_bytes: int


def describe_environment() -> Environment:
    """Look at the machine and the installation; measures the memory for a moment.

    Raises:
        InputError: ``DEJAVU_ISA`` names an instruction set that is not supported here.
    """
    threads = default_threads()
    measure = read_bandwidth()
    try:
        isas, isa = tuple(load_core().isas()), chosen_isa()
    except InputError:
        raise
    except DejavuError:  # an installation without the core is what `env` should show, not fail at
        isas, isa = (), None
    return Environment(
        machine=describe_machine(),
        isas=isas,
        isa=isa,
        threads=threads,
        read_bandwidth=measure(threads) if measure else None,
        versions=versions(),
        cache_folder=cache_root(),
        cache_bytes=folder_bytes(cache_root()),
    )


def read_bandwidth() -> Callable[[int], float] | None:
    """The core's measurement, threads -> bytes/s; None without a compiled core."""
    try:
        measure: Callable[[int], float] = load_core().read_bandwidth
    except DejavuError:
        return None
    return measure


@dataclass(frozen=True)
class DeltaFacts:
    """Of a folder that holds only what makes a model of its base."""

    base: str
    """Its name, as `sources.resolve` takes it."""
    bytes: int
    """Size of the file of the delta; 0: it has none, being a share of its base."""
    share: float | None = None
    """How far it goes, of the way that its base goes, which is a delta then."""


@dataclass(frozen=True)
class OwnPlan:
    """A plan in the folder of its model."""

    place: str
    """In that folder: what names it to `LLM` and --plan."""
    name: str
    density: float | None
    """Mean share of the neurons, as its evidence has it."""
    codec: str | None
    """Of the weights that it was made for, as its evidence has it."""


@dataclass(frozen=True)
class ModelFacts:
    """What `describe_model` found."""

    path: Path
    format: str
    config: ModelConfig
    parts: Mapping[Part, PartSize]
    kv_bytes_per_token: Mapping[str, int]
    source_types: Mapping[str, int]
    """Storage type in the file -> number of tensors."""
    tokenizer: Mapping[str, Any]
    """``vocab_size``, ``bos``, ``eos``, ``chat_template`` (whether there is one), or ``error``."""
    delta: DeltaFacts | None = None
    plans: tuple[OwnPlan, ...] = ()
    """Its own."""

    @property
    def parameters(self) -> int:
        """Of all parts."""
        return sum(part.parameters for part in self.parts.values())

    def total_bytes(self, codec: str) -> int:
        """Packed bytes of all parts in `codec`."""
        return sum(size for part in self.parts.values() for name, size in part.bytes.items() if name == codec)


def describe_model(path: Path) -> ModelFacts:
    """Read the headers of the model at `path` (a folder or a GGUF file).

    Raises:
        ModelFormatError, UnsupportedModelError: the model cannot be used.
        PlanError: a plan in its folder cannot be read.
    """
    model = open_model(path)
    try:
        types: dict[str, int] = {}
        for name in model.weights.names():
            kind = model.weights.source_type(name)
            types[kind] = types.get(kind, 0) + 1
        return ModelFacts(
            path=path,
            format=model.format,
            config=model.config,
            parts=inventory(model.config),
            kv_bytes_per_token={kind: kv_bytes_per_token(model.config, kind) for kind in KV_DTYPES},
            source_types=dict(sorted(types.items())),
            tokenizer=_tokenizer_facts(model),
            delta=_delta_facts(path),
            plans=tuple(_plan_facts(place, plan) for place, plan in own_plans(path).items()),
        )
    finally:
        model.close()


def _delta_facts(path: Path) -> DeltaFacts | None:
    if not (path / DELTA_NAME).is_file():
        return None
    record = read_delta(path)
    share = record.get("share")
    size = (path / ARRAYS_NAME).stat().st_size if share is None else 0
    return DeltaFacts(record["base"], size, share)


def _plan_facts(place: Path, plan: AccessPlan) -> OwnPlan:
    neurons, codec = plan.evidence.get("neurons"), plan.evidence.get("codec")
    density = neurons.get("density") if isinstance(neurons, dict) else None
    return OwnPlan(
        place=place.as_posix(),
        name=plan.name,
        density=density if isinstance(density, float) else None,
        codec=codec if isinstance(codec, str) else None,
    )


def _tokenizer_facts(model: OpenModel) -> dict[str, Any]:
    try:
        tokenizer = Tokenizer.from_model(model)
    except DejavuError as error:  # the rest is worth showing all the same
        return {"error": str(error.args[0])}
    return {
        "vocab_size": tokenizer.vocab_size,
        "bos": tokenizer.bos_token,
        "eos": tokenizer.eos_token,
        "chat_template": tokenizer.chat_template is not None,
    }
