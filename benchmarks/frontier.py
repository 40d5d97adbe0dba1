r"""Speed against quality of one model: our codecs and access plans beside llama.cpp's quantised files of the same weights.

    python benchmarks/frontier.py quality --model smollm2 --text heldout.jsonl --codecs bf16,int8,int4 \\
        --plans sketch=PLAN adapted=PLAN@FOLDER --peer-python PYTHON --out frontier.jsonl
    python benchmarks/frontier.py speed  (the same options)
    python benchmarks/frontier.py plot --out frontier.jsonl --svg docs/frontier.svg

`quality`: perplexity over the same tokens, as a ratio to our float32; plans through the masked path (every token selects
for itself). llama.cpp makes its files from a float32 GGUF that `dejavu convert` writes, and scores them with plain
weights, since its repacked ones do not survive prompts everywhere. Before anything is written its float32 file has to
agree with our float32 to 0.5%. `speed`: all settings decode the same text in turn, one round after the other; medians.
Finished rows are kept in the file, so that both parts can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.bench.peers.engines import find_engine
from dejavu.conversion import convert
from dejavu.engine import NativeExecutor
from dejavu.engine.native import default_threads
from dejavu.environment import describe_machine
from dejavu.evaluation.perplexity import (
    DEFAULT_WINDOW,
    Document,
    encode_documents,
    measure_perplexity,
    windows,
)
from dejavu.models.loading import open_model
from dejavu.models.sources import resolve
from dejavu.plan import AccessPlan
from dejavu.plan.choice import holds_plan
from dejavu.report.figures import frontier
from dejavu.texts import read_documents
from dejavu.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from dejavu.bench.peers.process import PeerProcess

LLAMA_CPP = find_engine("llama.cpp")
PEER_TYPES = ("F32", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
AGREES = 0.005
PREFIX = 64
STEPS = 32


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=("quality", "speed", "plot"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--codecs", default="bf16,int8,int4")
    parser.add_argument(
        "--plans",
        nargs="*",
        default=[],
        metavar="NAME=PLAN[@MODEL]",
        help="run on int8 weights; of MODEL, in whose folder PLAN may lie",
    )
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--peer-files", type=Path, default=Path("build/frontier"), help="where they are kept")
    parser.add_argument(
        "--threads", type=int, default=default_threads(), help="of both; default: the physical cores"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    {"quality": quality, "speed": speed, "plot": plot}[args.part](args)


def rows(path: Path) -> list[dict[str, Any]]:
    """What is finished."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a finished row."""
    command = shlex.join(["python", "benchmarks/frontier.py", *sys.argv[1:]])
    row |= {"cpu": describe_machine().cpu, "date": time.strftime("%Y-%m-%d"), "command": command}
    with path.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def ours(args: argparse.Namespace) -> dict[str, Callable[[], NativeExecutor]]:
    """Our settings by name; each opens an executor."""
    path = resolve(args.model)

    def dense(codec: Any) -> NativeExecutor:
        return NativeExecutor.load(path, codec=codec, threads=args.threads)

    def planned(plan: str, model: str) -> NativeExecutor:
        where = resolve(model) if model else path
        loaded = AccessPlan.load(where / plan if model and not holds_plan(Path(plan)) else plan)
        executor = NativeExecutor.load(where, codec="int8", leading=loaded.leading, threads=args.threads)
        executor.set_plan(loaded)
        return executor

    found: dict[str, Callable[[], NativeExecutor]] = {
        codec: partial(dense, codec) for codec in args.codecs.split(",")
    }
    for entry in args.plans:
        name, _, where = entry.partition("=")
        plan, _, model = where.partition("@")
        found[name] = partial(planned, plan, model)
    return found


def peer_file(args: argparse.Namespace, kind: str) -> Path:
    """llama.cpp's file of a type, made where it is missing."""
    args.peer_files.mkdir(parents=True, exist_ok=True)
    base = args.peer_files / "F32.gguf"
    if not base.exists():
        convert(resolve(args.model), base, format="gguf", codec="f32")
    path = args.peer_files / f"{kind}.gguf"
    if not path.exists():
        with LLAMA_CPP.start(args.peer_python) as peer:
            peer.call("quantize", source=str(base), target=str(path), kind=kind)
    return path


def quality(args: argparse.Namespace) -> None:
    """Perplexity ratios to our float32."""
    done = {(row["name"], row.get("text")) for row in rows(args.out) if "ppl_ratio" in row}
    opened = open_model(resolve(args.model))
    fingerprint = opened.weights.fingerprint
    documents = encode_documents(Tokenizer.from_model(opened), read_documents(args.text), limit=args.tokens)
    opened.close()
    base = NativeExecutor.load(resolve(args.model), codec="f32", threads=args.threads)
    reference = measure_perplexity(base, documents)
    base.close()

    def finish(name: str, kind: str, nll: float, tokens: int) -> None:
        ratio = float(np.exp(nll - reference.nll))
        row = {"name": name, "kind": kind, "text": args.text.name, "tokens": tokens, "ppl_ratio": ratio}
        append(args.out, row | {"base_ppl": reference.perplexity, "fingerprint": fingerprint})

    for kind in PEER_TYPES:
        name = f"llama.cpp {kind}"
        if (name, args.text.name) in done:
            continue
        with LLAMA_CPP.start(args.peer_python) as peer:
            path = str(peer_file(args, kind))
            peer.call("load", path=path, threads=args.threads, context=DEFAULT_WINDOW, extra_buffers=False)
            nll = sum(peer_nll(peer, document) for document in documents) / reference.tokens
        if kind == "F32" and abs(nll - reference.nll) > AGREES:
            raise SystemExit(
                f"llama.cpp's float32 gives {nll:.4f} nats, ours {reference.nll:.4f}: not the same model"
            )
        finish(name, "llama.cpp", nll, reference.tokens)
    for name, load in ours(args).items():
        if (name, args.text.name) in done:
            continue
        executor = load()
        by_plan = name not in args.codecs.split(",")
        found = measure_perplexity(executor, documents, path="masked" if by_plan else "prefill")
        executor.close()
        finish(name, "plan" if by_plan else "dense", found.nll, found.tokens)


def peer_nll(peer: PeerProcess, document: Document) -> float:
    """Of all scored tokens of a document, in the windows that ours is scored in."""
    return sum(
        float(peer.call("nll", tokens=inputs.tolist(), targets=targets.tolist()))
        for inputs, targets in windows(document, DEFAULT_WINDOW, DEFAULT_WINDOW - len(document.prefix))
    )


def speed(args: argparse.Namespace) -> None:
    """Tokens/s of all settings, in turn; of models that `quality` has found to be the same."""
    if not any(row["name"] == "llama.cpp F32" for row in rows(args.out)):
        raise SystemExit(
            f"{args.out} does not say that both compute the same model: run the part quality first"
        )
    opened = open_model(resolve(args.model))
    tokenizer, fingerprint = Tokenizer.from_model(opened), opened.weights.fingerprint
    opened.close()
    text = np.array(tokenizer.encode(next(iter(read_documents(args.text)))), np.int32)
    text = text[np.arange(PREFIX + STEPS) % len(text)]
    seconds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        executors = {name: load() for name, load in ours(args).items()}
        for executor in executors.values():
            stack.callback(executor.close)
        peers = {}
        for kind in PEER_TYPES[1:]:
            peers[kind] = stack.enter_context(LLAMA_CPP.start(args.peer_python))
            path = str(peer_file(args, kind))
            peers[kind].call("load", path=path, threads=args.threads, context=DEFAULT_WINDOW)
        for repeat in range(args.repeats + 1):
            for name, executor in executors.items():
                took = decode_seconds(executor, text)
                seconds.setdefault(name, []).extend([took] if repeat else [])
            for kind, peer in peers.items():
                took = peer.call("generate", tokens=text[:PREFIX].tolist(), n=STEPS)
                seconds.setdefault(f"llama.cpp {kind}", []).extend([took] if repeat else [])
    for name, times in seconds.items():
        low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
        row = {"name": name, "tokens_per_s": STEPS / middle, "spread": STEPS * (1 / low - 1 / high) / 2}
        row |= {"model": args.model, "threads": args.threads, "repeats": args.repeats}
        append(args.out, row | {"fingerprint": fingerprint})


def decode_seconds(executor: NativeExecutor, text: np.ndarray) -> float:
    """Seconds for STEPS tokens after the first PREFIX of `text`."""
    cache = executor.new_cache()
    executor.prefill(text[:PREFIX], cache)
    start = time.perf_counter()
    for token in text[PREFIX:]:
        executor.decode(np.array([token], np.int32), [cache])
    return time.perf_counter() - start


def plot(args: argparse.Namespace) -> None:
    """The picture, and the table behind it."""
    found = rows(args.out)
    rates = {row["name"]: row for row in found if "tokens_per_s" in row}
    names = {"llama.cpp": "llama.cpp", "dense": "dejavu, dense", "plan": "dejavu, by a plan"}
    groups: dict[str, list[tuple[str, float, float]]] = {}
    texts = list(dict.fromkeys(row["text"] for row in found if "ppl_ratio" in row))
    print(
        "| | "
        + " | ".join(f"ppl ratio, {text}" for text in texts)
        + " | tokens/s |\n|---|"
        + "---|" * (len(texts) + 1)
    )
    for name in dict.fromkeys(row["name"] for row in found if "ppl_ratio" in row):
        mine = {row["text"]: row for row in found if row["name"] == name and "ppl_ratio" in row}
        ratio = statistics.geometric_mean(row["ppl_ratio"] for row in mine.values())
        rate = rates.get(name)
        cells = [f"{mine[text]['ppl_ratio']:.3f}" if text in mine else "" for text in texts]
        cells.append(f"{rate['tokens_per_s']:.1f} ± {rate['spread']:.1f}" if rate else "")
        print(f"| {name} | " + " | ".join(cells) + " |")
        if rate:
            kind = names[next(iter(mine.values()))["kind"]]
            groups.setdefault(kind, []).append((name.removeprefix("llama.cpp "), rate["tokens_per_s"], ratio))
    if args.svg:
        args.svg.write_text(frontier(groups, title=title(rates.values())))


def title(speeds: Iterable[Mapping[str, Any]]) -> str:
    """Model and threads, as rows of speeds have them; older ones do not."""
    known = [(row["model"], row["threads"]) for row in speeds if "threads" in row]
    return "; ".join(f"{model}, {n} thread{'s' * (n > 1)}" for model, n in dict.fromkeys(known))


if __name__ == "__main__":
    main()
