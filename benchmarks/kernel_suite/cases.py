"""What is timed: the names of all cases, and how each of them is set up.

A case knows how to check itself: every one of them is compared with its plain twin before anything is timed.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CODECS = ("f32", "bf16", "int8", "int4")
KV_TYPES = ("f32", "f16", "bf16", "int8")
DENSITIES = (1.0, 0.5, 0.1)
PLACES = ("hot", "cold")
PARTS = ("lead5", "low3", "lead4", "low4", "lead3", "low5")


@dataclass(frozen=True)
class Sizes:
    """How large the cases are; both builds get the same."""

    hot_bytes: int = 512 << 10
    """Of weights that are to stay in the second-level cache."""
    cold_bytes: int = 256 << 20
    """Of all weights that the calls of a cold case go through in turn."""
    widths: dict[str, int] = field(default_factory=lambda: {"576": 1536, "2048": 5632})
    """d_model (as text, for JSON) -> d_ff."""
    context: int = 1024
    prompt: int = 128
    layers: dict[str, int] = field(default_factory=lambda: {"576": 30, "2048": 8})
    """d_model -> layers of the models that take whole steps."""
    long: int = 4096
    """Tokens before a step of a long context."""


@dataclass(frozen=True)
class Work:
    """A case, ready to run."""

    run: Callable[[int], None]
    """Call number i; calls of cold cases go through the weights in turn."""
    error: Callable[[], float]
    """Difference of a call from the plain twin over what the tolerance allows: above 1 the check is red."""
    rows: int
    """Rows (engine: tokens) that a call computes."""
    bytes: int
    """Bytes of weights and caches that a call reads."""
    cold: bool
    """Whether these come from memory."""
    flops: int = 0
    """Of matrix products, where arithmetic is the limit."""
    threads: int = 1


@dataclass(frozen=True)
class Case:
    """A function of `row_cases` or `engine_cases` and what it takes beside the sizes."""

    module: str
    function: str
    arguments: dict[str, Any]

    def set_up(self, sizes: Sizes) -> Work:
        """Allocate and pack, with the build that this process has loaded."""
        make = getattr(importlib.import_module(f"kernel_suite.{self.module}"), self.function)
        work: Work = make(sizes, **self.arguments)
        return work


def cases(sizes: Sizes, threads: int) -> dict[str, Case]:
    """Every case by its name; `threads` is what "all" threads are."""
    found: dict[str, Case] = {}

    def row(name: str, function: str, **arguments: Any) -> None:
        found[name] = Case("row_cases", function, arguments)

    def engine(name: str, function: str, **arguments: Any) -> None:
        found[name] = Case("engine_cases", function, arguments)

    widths = [(int(d), ff) for d, ff in sizes.widths.items()]
    for (d, ff), codec in product(widths, CODECS):
        for place, kind in product(PLACES, ("dot", "dot_list", "axpy")):
            row(f"{kind}/{codec}/{d}/{place}", kind, codec=codec, d=d, cold=place == "cold")
        row(f"mlp/{codec}/{d}/dense/hot", "mlp", codec=codec, d=d, neurons=0, density=1.0)
        for density in DENSITIES:
            name = "dense" if density == 1 else f"{density:g}"
            row(f"mlp/{codec}/{d}/{name}/cold", "mlp", codec=codec, d=d, neurons=ff, density=density)
        row(f"mlp8/{codec}/{d}/0.5/cold", "mlp", codec=codec, d=d, neurons=ff, density=0.5, tokens=8)
        row(f"decode_rows/{codec}/{d}/hot", "decode_rows", codec=codec, d=d)
    for (d, _), part, place in product(widths, PARTS, PLACES):
        row(f"parts/{part}/{d}/{place}", "parts", part=part, d=d, cold=place == "cold")
    for (d, ff), kind in product(widths, ("f32", "bf16")):
        row(f"gemm/{kind}/{d}", "gemm", kind=kind, d=d, ff=ff)
    for kv in KV_TYPES:
        engine(f"attention/{kv}", "attention", kv=kv)
    for codec in CODECS:
        engine(f"prefill/{codec}", "prefill", codec=codec, threads=threads)
    for (d, _), codec, n in product(widths, CODECS, sorted({1, threads})):
        engine(f"step/{codec}/{d}/dense/{n}t", "step", codec=codec, d=d, threads=n)
        for bits in {"int8": (3, 4, 5), "int4": (4,)}.get(codec, ()):
            name = f"step/{codec}/{d}/sketch{bits}/{n}t"
            engine(name, "step", codec=codec, d=d, threads=n, density=0.4, bits=bits)
    for (d, _), codec in product(widths, CODECS):
        name = f"step/{codec}/{d}/long/{threads}t"
        engine(name, "step", codec=codec, d=d, threads=threads, context=sizes.long)
    return found
