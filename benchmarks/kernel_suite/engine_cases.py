"""Cases that run the engine on synthetic weights; the plain twin is the same engine on portable kernels."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.engine.synthetic import synthetic
from dejavu.models.config import ModelConfig
from kernel_suite.cases import Work
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dejavu.engine.native import NativeExecutor
    from kernel_suite.cases import Sizes

    Logits = NDArray[np.float32]

STEPS = 3
"""Decode steps that a check compares."""
SHORT = 16
"""Tokens before a step whose attention is to count little."""


def llama(sizes: Sizes, layers: int, d: int | None = None, **changes: Any) -> ModelConfig:
    """A Llama of width `d` (None: the first one), 64 wide heads, and a short vocabulary."""
    d = int(next(iter(sizes.widths))) if d is None else d
    ff, heads = sizes.widths[str(d)], max(3, d // 64)
    shape: dict[str, Any] = {
        "family": "llama",
        "vocab_size": 4096,
        "d_model": d,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": heads // (8 if heads % 3 else 3),
        "head_dim": 64,
        "d_ff": ff,
        "max_context": 2 * max(sizes.context, sizes.long),
    }
    return ModelConfig(**shape | changes)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Executors that are made here run on the portable kernels."""
    before = os.environ.get("DEJAVU_ISA")
    os.environ["DEJAVU_ISA"] = "portable"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DEJAVU_ISA"]
        else:
            os.environ["DEJAVU_ISA"] = before


def tokens_of(config: ModelConfig, n: int) -> NDArray[np.int32]:
    """Random tokens."""
    return np.random.default_rng(2).integers(0, config.vocab_size, n, dtype=np.int32)


def difference(
    make: Callable[[], NativeExecutor], logits: Callable[[NativeExecutor], Logits], tolerance: str
) -> float:
    """Of logits to those of the portable kernels, over the tolerance of that name."""
    fast = make()
    with portable():
        plain = make()
    found, expected = logits(fast), logits(plain)
    worst = float(np.abs(found - expected).max() / np.abs(expected).max()) / TOLERANCES[tolerance]
    return worst if np.isfinite(worst) else float("inf")


def decoded(executor: NativeExecutor, context: int) -> Logits:
    """Logits [STEPS, vocab] of decode steps after `context` tokens of prompt."""
    tokens, cache = tokens_of(executor.config, context + STEPS), executor.new_cache()
    if context:
        executor.prefill(tokens[:context], cache)
    return np.concatenate([executor.decode(tokens[i : i + 1], [cache]) for i in range(context, len(tokens))])


def stepping(executor: NativeExecutor, context: int) -> Callable[[int], None]:
    """A call: one token after `context` others, then forgotten."""
    tokens, cache = tokens_of(executor.config, context + 1), executor.new_cache()
    for start in range(0, context, 512):
        executor.prefill(tokens[start : min(start + 512, context)], cache)

    def run(i: int) -> None:
        executor.decode(tokens[context:], [cache])
        cache.truncate(context)

    return run


def step(
    sizes: Sizes,
    codec: Any,
    d: int,
    threads: int,
    density: float | None = None,
    bits: int = 0,
    context: int = SHORT,
) -> Work:
    """A decode step of a whole model: dense, or with that density of the neurons, by sketches of so many bits."""
    config = llama(sizes, sizes.layers[str(d)], d)

    def make(kv: str = "f32") -> NativeExecutor:
        return synthetic(config, codec, kv_dtype=kv, threads=threads, **({"leading": bits} if bits else {}))

    executor = make("f16")
    if density is not None:
        executor.set_plan(sketch(executor, bits, density))
    run = stepping(executor, context)
    run(0)  # so that the bytes are those of the densities that ran
    # A long context is checked behind two blocks of the cache; a prompt comes before them, which bf16 products round.
    behind = 0 if context <= SHORT else min(context, 160)
    tolerance = f"native_{codec}_prefill" if behind else f"native_{codec}"

    def logits(candidate: NativeExecutor) -> Logits:
        if bits and candidate.isa != "portable":  # choosing everything is what the dense twin computes
            candidate.set_plan(sketch(candidate, bits, 1.0))
        return decoded(candidate, behind)

    return Work(
        run,
        lambda: difference(make, logits, tolerance),
        rows=1,
        bytes=sum(executor.touched_bytes(context).values()),
        cold=True,
        threads=threads,
    )


def sketch(executor: NativeExecutor, bits: int, density: float) -> Any:
    """The plan that chooses neurons by so many leading bits."""
    from dejavu.plan import AccessPlan, Dense, LayerPlan, Sketch

    layer = LayerPlan(Sketch(bits=bits, density=density), Dense())
    return AccessPlan(model=executor.packed.fingerprint, layers=(layer,) * executor.config.n_layers)


def attention(sizes: Sizes, kv: str) -> Work:
    """Scores and mixes over a long cache: a model of which hardly anything else is left."""
    config = llama(sizes, 4, vocab_size=64, d_model=32, n_heads=16, n_kv_heads=16, d_ff=16)

    def make(kv_dtype: str = kv) -> NativeExecutor:
        return synthetic(config, "f32", kv_dtype=kv_dtype, threads=1)

    executor = make()
    short = min(
        sizes.context, 160
    )  # two blocks of the cache; the portable prompt would take seconds otherwise
    return Work(
        stepping(executor, sizes.context),
        lambda: difference(make, lambda e: decoded(e, short), f"native_kv_{kv}"),
        rows=1,
        bytes=sum(executor.touched_bytes(sizes.context).values()),
        cold=False,
    )


def prefill(sizes: Sizes, codec: Any, threads: int) -> Work:
    """A prompt through four layers: decoding rows, packing, products, attention."""
    config = llama(sizes, 4)

    def make() -> NativeExecutor:
        return synthetic(config, codec, kv_dtype="f32", threads=threads)

    executor = make()
    tokens, cache = tokens_of(config, sizes.prompt), executor.new_cache()

    def run(i: int) -> None:
        executor.prefill(tokens, cache)
        cache.truncate(0)

    def logits(candidate: NativeExecutor) -> Logits:
        return candidate.prefill(tokens[: min(32, sizes.prompt)], candidate.new_cache(), all_logits=True)

    weights = (
        config.n_layers * config.d_model * (3 * config.d_ff + 2 * 64 * (config.n_heads + config.n_kv_heads))
    )
    return Work(
        run,
        lambda: difference(make, logits, f"native_{codec}_prefill"),
        rows=sizes.prompt,
        bytes=sum(executor.touched_bytes(0).values()),
        cold=False,
        flops=2 * weights * sizes.prompt,
        threads=threads,
    )
