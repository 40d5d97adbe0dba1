"""Speed of sparse execution: kernels against the own dense ones and against gather-then-matmul, and whole models.

    python benchmarks/sparse.py kernels --codec int8 --densities .05,.1,.2,.3,.5
    python benchmarks/sparse.py gather
    python benchmarks/sparse.py model --shape opt-1.3b --codec int8 --neurons .1 --heads .5

Weights are synthetic: speed does not depend on their values when the selected sets have the stated size. Sparse and dense
run over the same weights in one process, step by step in turn; figures are medians (ratios: of those of neighbouring
steps) and, after ±, half the distance between the quartiles. No figures are printed unless the selectors of the timed plan
give the dense logits when they choose everything, and choose as many as was asked for when they are timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.bench.shapes import shape
from dejavu.engine import synthetic
from dejavu.engine.touched import dense_bytes, plan_bytes
from dejavu.environment import describe_machine
from dejavu.inspection import read_bandwidth
from dejavu.plan import AccessPlan, Dense, KvPolicy, LayerPlan, LowRank, Static

if TYPE_CHECKING:
    from collections.abc import Callable

    from dejavu.engine import NativeExecutor
    from dejavu.models.config import Activation, ModelConfig

TOLERANCE = 1e-6
TOLERANCE_OF_ZEROS = 2e-4
"""Where neurons are exactly zero, as with ReLU, a plan leaves them out: sums are of another order, which may round a key
or value to the other side, and coefficients of int8 and int4 are rounded to int16 with other neighbours."""
DENSITY_SLACK = 0.02
NO_ZEROS: Activation = "gelu"
"""Of blocks that are compared. By OPT's own, ReLU, half of the chosen neurons would be zero, and their second rows not
read."""


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=("kernels", "gather", "model"))
    parser.add_argument("--shape", default="opt-1.3b")
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--densities", default=".05,.1,.2,.3,.5")
    parser.add_argument("--neurons", type=float, default=0.1)
    parser.add_argument("--heads", type=float, default=0.5)
    parser.add_argument("--rank", type=int, default=64, help="of the neuron predictors")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    rows = {"kernels": kernels, "gather": gather, "model": model}[args.part](args)
    machine = {"cpu": describe_machine().cpu, "date": time.strftime("%Y-%m-%d")}
    print(json.dumps({"machine": machine, "command": " ".join(sys.argv), "rows": rows}, indent=1))


def kernels(args: argparse.Namespace) -> list[dict[str, Any]]:
    """MLP blocks alone and attention blocks alone: time at density k over time of the own dense block."""
    base, rows = shape(args.shape), []
    small = {"n_layers": 8, "vocab_size": 64, "activation": NO_ZEROS}
    only_mlp = dataclasses.replace(base, n_heads=1, n_kv_heads=1, head_dim=base.head_dim, **small)
    only_attention = dataclasses.replace(base, d_ff=16, **small)
    for name, config, context in (("mlp", only_mlp, 8), ("attention", only_attention, args.context)):
        executor = synthetic(config, args.codec, threads=args.threads)
        for density in map(float, args.densities.split(",")):
            plan = static_plan(executor, density, name)
            check(executor, plan)
            dense, sparse = interleaved(executor, plan, context, args.repeats, name)
            asked = {"neurons" if name == "mlp" else "heads": density}
            rows.append(
                {
                    "block": name,
                    "codec": args.codec,
                    "density": density,
                    "dense_ms": summary(dense),
                    "sparse_ms": summary(sparse),
                    "share": round(of_pairs(sparse, dense), 3),
                    **touched(executor, plan, asked),
                }
            )
        executor.close()
    return rows


def static_plan(executor: NativeExecutor, density: float, block: str) -> AccessPlan:
    """Another random set in every layer, for the block named."""
    config, random = executor.config, np.random.default_rng(1)

    def some(n: int) -> Static:
        chosen = random.choice(n, max(1, round(density * n)), replace=False)
        return Static(indices=np.sort(chosen).astype(np.int32))

    layers = tuple(
        LayerPlan(
            some(config.base_neurons) if block == "mlp" else Dense(),
            some(config.n_heads) if block == "attention" else Dense(),
        )
        for _ in range(config.n_layers)
    )
    return AccessPlan(model=executor.packed.fingerprint, layers=layers, kv=KvPolicy("recompute", 64))


def model(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A whole model under low-rank predictors of neurons and heads, predictors included."""
    config = shape(args.shape)
    executor = synthetic(config, args.codec, threads=args.threads)
    plan = predicted_plan(executor, args.neurons, args.heads, args.rank)
    check(executor, plan)
    dense, sparse = interleaved(executor, plan, args.context, args.repeats)
    predicting = 2 * executor.last_stats["ms"]["predicting"]  # of both kinds of steps, which are as many
    bandwidth = read_bandwidth()
    return [
        {
            "shape": args.shape,
            "weights": "synthetic",
            "codec": args.codec,
            "neurons": args.neurons,
            "heads": args.heads,
            "rank": args.rank,
            "context": args.context,
            "dense_ms": summary(dense),
            "sparse_ms": summary(sparse),
            "speedup": round(of_pairs(dense, sparse), 2),
            "predictor_share": round(predicting / statistics.median(sparse), 3),
            "read_bandwidth_GB_s": round(bandwidth(executor.threads) / 1e9, 1) if bandwidth else None,
            **touched(executor, plan, {"neurons": args.neurons, "heads": args.heads}),
        }
    ]


def predicted_plan(executor: NativeExecutor, neurons: float, heads: float, rank: int) -> AccessPlan:
    """Predictors of random weights: a set of the stated size that changes with every token."""
    config, random = executor.config, np.random.default_rng(2)

    def predictor(n: int, density: float, rank: int) -> LowRank:
        a, b = (random.standard_normal(s).astype(np.float32) for s in ((rank, config.d_model), (n, rank)))
        return LowRank(a=a, b=b, bias=np.zeros(n, np.float32), density=density, lookahead=1)

    first = LayerPlan(predictor(config.base_neurons, neurons, rank), predictor(config.n_heads, heads, 16))
    return AccessPlan(
        model=executor.packed.fingerprint,
        layers=(first,) * config.n_layers,
        kv=KvPolicy("recompute", 64),
    )


def interleaved(
    executor: NativeExecutor, plan: AccessPlan, context: int, repeats: int, block: str | None = None
) -> tuple[list[float], list[float]]:
    """Milliseconds of each of `repeats` tokens after `context` others: dense and by the plan, one step of each in turn.

    What a step reads is gone from the processor's caches when it comes again: a dense step reads more than they hold.
    `block`: of the MLP blocks ("mlp") or of what else there is but the head ("attention"), norms and waiting included.
    """
    random = np.random.default_rng(3)
    tokens = random.integers(0, executor.config.vocab_size, context + repeats + 2, dtype=np.int32)
    base = executor.new_cache()
    executor.set_plan(None)
    for start in range(0, context, 512):
        executor.prefill(tokens[start : min(start + 512, context)], base)
    executor.set_plan(plan)
    executor.reset_stats()
    logits = np.empty((1, executor.config.vocab_size), np.float32)
    caches = base.fork(), base.fork()
    times: tuple[list[float], list[float]] = [], []
    for step in range(repeats + 2):
        for sparse, cache, found in zip((False, True), caches, times, strict=True):
            if block:
                executor.reset_stats()
            start = time.perf_counter()
            executor.step(tokens[context + step :][:1], cache, logits, sparse=sparse)
            seconds = time.perf_counter() - start
            if block:
                mlps, _, attention = executor.part_seconds()
                seconds = float(mlps.sum()) if block == "mlp" else attention
            if step >= 2:
                found.append(1000 * seconds)
    return times


def whole(selector: Any, units: int) -> Any:
    """The same kind of selector, which chooses all of `units`."""
    if isinstance(selector, Static):
        return Static(indices=np.arange(units, dtype=np.int32))
    return selector if isinstance(selector, Dense) else dataclasses.replace(selector, density=1.0)


def check(executor: NativeExecutor, plan: AccessPlan) -> None:
    """Refuse to go on unless the selectors of `plan` give what no plan gives where they choose everything."""
    config = executor.config
    layers = tuple(
        LayerPlan(whole(layer.neurons, config.base_neurons), whole(layer.heads, config.n_heads))
        for layer in plan.layers
    )
    logits = []
    for candidate in (None, dataclasses.replace(plan, layers=layers)):
        executor.set_plan(candidate)
        cache = executor.new_cache()
        for token in (5, 6, 7):
            last = executor.decode(np.array([token], np.int32), [cache])
        logits.append(last)
    error = np.abs(logits[0] - logits[1]).max() / np.abs(logits[0]).max()
    if not error <= (TOLERANCE_OF_ZEROS if config.activation == "relu" else TOLERANCE):
        raise SystemExit(f"selecting everything differs from dense by {error:.2e}; no figures")


def touched(executor: NativeExecutor, plan: AccessPlan, asked: dict[str, float]) -> dict[str, Any]:
    """Densities of the steps timed last, and bytes that a token reads at them; refuses others than those asked for."""
    config, stats = executor.config, executor.last_stats
    for name, density in asked.items():
        units = {"neurons": config.base_neurons, "heads": config.n_heads}[name]
        found = statistics.mean(stats[name])
        # There are no parts of units: of few heads, only some densities are to be had.
        if not abs(found - density) <= max(DENSITY_SLACK, 1 / units):
            raise SystemExit(f"{found:.3f} of the {name} were chosen instead of {density:g}; no figures")
    read = plan_bytes(executor.packed, plan, stats["neurons"], stats["heads"])
    return {
        "measured": {name: round(statistics.mean(stats[name]), 4) for name in asked},
        "touched_bytes": sum(read.values()),
        "dense_bytes": sum(dense_bytes(executor.packed).values()),
    }


def gather(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One MLP of the shape: our kernel against index_select followed by products, in NumPy and torch."""
    import torch

    config: ModelConfig = dataclasses.replace(
        shape(args.shape),
        n_layers=8,
        vocab_size=64,
        n_heads=1,
        n_kv_heads=1,
        head_dim=64,
        activation=NO_ZEROS,
    )
    d, f, rows = config.d_model, config.d_ff, []
    random = np.random.default_rng(0)
    up = [random.standard_normal((f, d)).astype(np.float32) for _ in range(config.n_layers)]
    down = [random.standard_normal((f, d)).astype(np.float32) for _ in range(config.n_layers)]
    x = random.standard_normal(d).astype(np.float32)
    half = [
        (torch.from_numpy(u).bfloat16(), torch.from_numpy(w).bfloat16())
        for u, w in zip(up, down, strict=True)
    ]
    if args.threads:
        torch.set_num_threads(args.threads)

    # Rows are gathered into memory that is there already, as a tuned baseline would do it.
    room = np.empty((f, d), np.float32)
    rooms = {torch.float32: torch.from_numpy(room), torch.bfloat16: torch.empty((f, d), dtype=torch.bfloat16)}

    def by_numpy(chosen: list[np.ndarray]) -> None:
        for u, w, index in zip(up, down, chosen, strict=True):
            some = room[: len(index)]
            hidden = np.maximum(np.take(u, index, axis=0, out=some, mode="clip") @ x, 0)
            hidden @ np.take(w, index, axis=0, out=some, mode="clip")

    def by_torch(chosen: list[Any], dtype: Any) -> None:
        y = torch.from_numpy(x).to(dtype)
        for i, index in enumerate(chosen):
            some = rooms[dtype][: len(index)]
            u, w = (
                half[i] if dtype == torch.bfloat16 else (torch.from_numpy(up[i]), torch.from_numpy(down[i]))
            )
            hidden = torch.relu(torch.index_select(u, 0, index, out=some) @ y)
            hidden @ torch.index_select(w, 0, index, out=some)

    for codec in ("f32", "bf16"):
        executor = synthetic(config, codec, threads=args.threads)
        for density in map(float, args.densities.split(",")):
            plan = static_plan(executor, density, "mlp")
            check(executor, plan)
            chosen = [layer.neurons.indices for layer in plan.layers if isinstance(layer.neurons, Static)]
            as_torch = [torch.from_numpy(index.astype(np.int64)) for index in chosen]
            candidates: dict[str, Callable[[], None]] = {
                "torch": lambda t=as_torch, c=codec: by_torch(
                    t, torch.bfloat16 if c == "bf16" else torch.float32
                )
            }
            if codec == "f32":
                candidates["numpy"] = lambda c=chosen: by_numpy(c)
            times: dict[str, list[float]] = {name: [] for name in ("dejavu", *candidates)}
            for _ in range(args.repeats):
                _, ours = interleaved(executor, plan, 8, 1, "mlp")
                times["dejavu"].append(statistics.median(ours))
                for name, run in candidates.items():
                    start = time.perf_counter()
                    run()
                    times[name].append(1000 * (time.perf_counter() - start))
            rows.append(
                {"codec": codec, "density": density, "ms": {k: summary(v) for k, v in times.items()}}
                | touched(executor, plan, {"neurons": density})
                | {
                    f"over_{k}": round(of_pairs(v, times["dejavu"]), 1)
                    for k, v in times.items()
                    if k != "dejavu"
                }
            )
        executor.close()
    return rows


def of_pairs(a: list[float], b: list[float]) -> float:
    """Median of the ratios of neighbouring steps: a shared machine is at times slower for seconds."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def summary(values: list[float]) -> str:
    """Median ± half the distance between the quartiles, in milliseconds."""
    low, high = np.quantile(values, [0.25, 0.75])
    return f"{statistics.median(values):.3f} ± {(high - low) / 2:.3f}"


if __name__ == "__main__":
    main()
