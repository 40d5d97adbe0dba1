"""Decode and prefill speed beside llama.cpp: same machine, same threads, same bits, one interleaved run.

    python benchmarks/speed.py --peer-python PYTHON [--model smollm2] [--shape tinyllama-1.1b] [--json FILE]

Every repeat times both sides one after the other; the table shows medians, the spread, and the median of the ratios of
each repeat (llama.cpp's time / ours: above 1 we are faster). llama.cpp runs twice, with its repacked weights (AMX where
there is AMX) and with the plain ones; the faster of the two is compared, per test. Before timing, our decode path is
checked against our prefill path. Agreement of the results with llama.cpp is measured by agreement.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from results_suite.beside import batch_table, conditions, speed_table

from dejavu import _core
from dejavu.bench.peers.engines import find_engine
from dejavu.bench.peers.synthetic_gguf import write_synthetic_gguf
from dejavu.bench.shapes import shape
from dejavu.engine import NativeExecutor, synthetic
from dejavu.environment import describe_machine
from dejavu.errors import PeerError
from dejavu.models.sources import resolve

LLAMA_CPP = find_engine("llama.cpp")
PROMPT = 512
GENERATED = 32
START = 16
"""Tokens in the cache before generation is timed."""


@dataclass
class Row:
    """One comparison; times in seconds, one per repeat."""

    model: str
    codec: str
    peer_type: str
    test: str
    ours: list[float]
    peer: list[float]
    tokens: int
    touched_bytes: int
    bandwidths: list[float]
    """Read bandwidth in bytes/s before and after each of ours."""

    @property
    def ratio(self) -> float:
        """Median over repeats of the peer's time / ours."""
        return statistics.median(p / o for o, p in zip(self.ours, self.peer, strict=True))

    @property
    def share(self) -> float:
        """Median over repeats of our bytes/s over the read bandwidth beside it."""
        pairs = zip(self.ours, self.bandwidths, strict=True)
        return statistics.median(self.touched_bytes * self.tokens / o / b for o, b in pairs)

    def json(self) -> dict[str, Any]:
        """What the tables are made of."""
        return asdict(self) | {"ratio": self.ratio, "share": self.share if self.touched_bytes else None}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of log-probabilities, float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def check(executor: NativeExecutor, tokens: np.ndarray) -> None:
    """Decoding predicts what prefilling predicts, or no figure is printed. bf16 products alone give 1e-3."""
    cache = executor.new_cache()
    steps = np.concatenate([executor.prefill(tokens[i : i + 1], cache) for i in range(len(tokens))])
    p, q = log_softmax(steps), log_softmax(executor.prefill(tokens, executor.new_cache(), all_logits=True))
    divergence = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    if not divergence < 0.02:
        raise SystemExit(f"decode and prefill diverge by {divergence:.3g} nats: no figures")


def generate(executor: NativeExecutor, prompt: np.ndarray, n: int) -> float:
    """Seconds for n greedy tokens after the prompt."""
    cache = executor.new_cache()
    token = executor.prefill(prompt, cache)[0].argmax()
    start = time.perf_counter()
    for _ in range(n):
        token = executor.decode(np.array([token], np.int32), [cache])[0].argmax()
    return time.perf_counter() - start


def read_bandwidth(executor: NativeExecutor) -> float:
    """Bytes per second with as many threads: it changes by the second where machines are shared."""
    return float(_core.read_bandwidth(executor.threads))


def prefill(executor: NativeExecutor, prompt: np.ndarray) -> float:
    """Seconds for the prompt, logits of its last token included."""
    start = time.perf_counter()
    executor.prefill(prompt, executor.new_cache())
    return time.perf_counter() - start


class Peers:
    """llama.cpp with its repacked weights, and with plain ones."""

    def __init__(self, python: str, stack: ExitStack) -> None:
        self._python = python
        self._repacked, self._plain = (stack.enter_context(LLAMA_CPP.start(python)) for _ in range(2))
        self.all = self.for_prompts = [self._repacked, self._plain]
        self.version = self._plain.version

    def load(self, path: Path, threads: int) -> None:
        """A file in place of the one before."""
        survives = self._try_prompt(path, threads)
        self.for_prompts = self.all if survives else [self._plain]
        for peer, extra_buffers in zip(self.all, (True, False), strict=True):
            peer.call("load", path=str(path), threads=threads, extra_buffers=extra_buffers)

    def _try_prompt(self, path: Path, threads: int) -> bool:
        """Whether a process with repacked weights survives a prompt of several tokens."""
        with LLAMA_CPP.start(self._python) as peer:
            peer.call("load", path=str(path), threads=threads)
            try:
                peer.call("prompt", tokens=list(range(3, 35)))
            except PeerError:
                return False
        return True


def compare(
    name: str, codec: str, peer_type: str, executor: NativeExecutor, peers: Peers, repeats: int
) -> list[Row]:
    """Interleaved repeats of generation and prompt processing."""
    random = np.random.default_rng(1)
    prompt = random.integers(3, executor.config.vocab_size, PROMPT).astype(np.int32)
    check(executor, prompt[:START])
    touched = sum(executor.touched_bytes(START + GENERATED // 2).values())
    first, whole = prompt[:START].tolist(), prompt.tolist()
    found = []
    for test, tokens, ours, theirs in (
        (
            "decode",
            GENERATED,
            lambda: generate(executor, prompt[:START], GENERATED),
            [lambda p=p: float(p.call("generate", tokens=first, n=GENERATED)) for p in peers.all],
        ),
        (
            "prefill",
            PROMPT,
            lambda: prefill(executor, prompt),
            [lambda p=p: float(p.call("prompt", tokens=whole)) for p in peers.for_prompts],
        ),
    ):
        times: list[list[float]] = [[] for _ in range(1 + len(theirs))]
        bandwidths: list[float] = []
        for repeat in range(repeats + 1 if test == "decode" else min(repeats, 3) + 1):
            for side, measure in zip(times, [ours, *theirs], strict=True):
                before = read_bandwidth(executor) if measure is ours else 0
                seconds = measure()
                if repeat and measure is ours:
                    bandwidths.append(statistics.harmonic_mean((before, read_bandwidth(executor))))
                if repeat:  # the first round warms up
                    side.append(seconds)
                time.sleep(0.05)  # the other side's threads go to sleep
        print(
            f"{name} {codec} {test}: {[round(statistics.median(t) / tokens * 1e3, 3) for t in times]} ms",
            file=sys.stderr,
        )
        best = min(times[1:], key=statistics.median)
        found.append(
            Row(
                name, codec, peer_type, test, times[0], best, tokens, touched * (test == "decode"), bandwidths
            )
        )
    return found


def batched(name: str, codec: str, executor: NativeExecutor, repeats: int, size: int = 8) -> dict[str, Any]:
    """`size` sequences decoded together against one: seconds of a step of each, and the ratio of their tokens/s."""
    prompt = np.arange(3, 3 + START, dtype=np.int32)
    times: list[tuple[float, float]] = []
    for _ in range(repeats):
        one = generate(executor, prompt, 16) / 16
        caches = [executor.new_cache() for _ in range(size)]
        tokens = np.array(
            [executor.prefill(prompt + i, c)[0].argmax() for i, c in enumerate(caches)], np.int32
        )
        start = time.perf_counter()
        for _ in range(16):
            tokens = executor.decode(tokens, caches).argmax(axis=1).astype(np.int32)
        times.append((one, (time.perf_counter() - start) / 16))
    alone, together = (statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(size * one / several for one, several in times)
    found = {"model": name, "codec": codec, "size": size, "one": alone, "together": together}
    return found | {"ratio": ratio}


def draw(rows: list[Row], path: Path, caption: str) -> None:
    """Bars of tokens/s, ours and llama.cpp's, whiskers from the slowest to the fastest repeat."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 0.9 + 0.42 * len(rows) / 2), layout="constrained")
    for axis, test in zip(axes, ("decode", "prefill"), strict=True):
        chosen = [row for row in rows if row.test == test]
        for offset, side, colour, label in (
            (-0.2, "ours", "#1f6f8b", "dejavu"),
            (0.2, "peer", "#c4c4c4", "llama.cpp"),
        ):
            rates = [np.array([row.tokens / t for t in getattr(row, side)]) for row in chosen]
            middle = np.array([np.median(r) for r in rates])
            spread = np.array([[m - r.min(), r.max() - m] for m, r in zip(middle, rates, strict=True)]).T
            places = np.arange(len(chosen)) + offset
            axis.barh(places, middle, 0.38, xerr=spread, color=colour, label=label, error_kw={"lw": 0.8})
        axis.set_yticks(range(len(chosen)), [f"{row.model.split(' ')[0]} {row.codec}" for row in chosen])
        axis.invert_yaxis()
        axis.set_xlabel(f"{test}, tokens/s")
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, loc="lower right")
    figure.suptitle(caption, fontsize=8, color="#666666")
    figure.savefig(path)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--model", action="append", default=[], help="a GGUF model, such as smollm2")
    parser.add_argument("--shape", action="append", default=[], help="a Llama shape with synthetic weights")
    parser.add_argument("--codecs", default="int4,int8,bf16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--folder", type=Path, default=Path("build/gguf"), help="where synthetic GGUF files are kept"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="draw the table as an SVG or PNG file (needs matplotlib)")
    options = parser.parse_args()
    rows, batches = [], []
    with ExitStack() as stack:
        peers = Peers(options.peer_python, stack)
        for name in options.model:
            path = resolve(name)
            peers.load(path, options.threads)
            executor = NativeExecutor.load(path, codec="int4", threads=options.threads)
            rows += compare(path.stem.split(".")[0], "int4", "the file", executor, peers, options.repeats)
            executor.close()
        for name in options.shape:
            for codec in options.codecs.split(","):
                config = shape(name)
                kind = LLAMA_CPP.types[codec]
                path = options.folder / f"{name}-{kind}.gguf"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_synthetic_gguf(path, config, kind)
                peers.load(path, options.threads)
                executor = synthetic(config, codec, threads=options.threads)
                rows += compare(f"{name} (synthetic)", codec, kind, executor, peers, options.repeats)
                batches.append(batched(f"{name} (synthetic)", codec, executor, 3))
                executor.close()
        version = peers.version
    beside = [b for row in rows for b in row.bandwidths]
    document = {
        "cpu": describe_machine().cpu,
        "threads": options.threads,
        "bandwidth": [min(beside), max(beside)],
        "peer": version,
        "date": time.strftime("%Y-%m-%d"),
        "rows": [row.json() for row in rows],
        "batches": batches,
    }
    print(conditions(document), speed_table(document), batch_table(document), sep="\n\n")
    if options.plot:
        draw(rows, options.plot, f"{document['cpu']}, {options.threads} threads, {document['date']}")
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
