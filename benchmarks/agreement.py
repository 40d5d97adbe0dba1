"""Agreement with llama.cpp on the same GGUF file: tokens, greedy text, KL divergence, perplexity.

    python benchmarks/agreement.py --peer-python PYTHON --text FILE [--as-f32 | --as-q8] [--model smollm2] [--json FILE]

llama.cpp multiplies quantised weights with 8-bit activations; our f32 codec holds the dequantised weights exactly. Part of
the divergence is therefore its rounding. Two options show how much:

--as-f32 writes the dequantised weights to a float32 GGUF file first and compares on that, where neither side rounds.

--as-q8 leaves llama.cpp its file and rounds activations to 8 bits on our side too, in the NumPy reference
(`agreement_suite/rounding.py`). Two runs whose sums differ in the last bit round some value to different codes, and are
soon as far apart as rounding takes them. So three pairs are compared:

    emulated    the reference with rounding, and llama.cpp
    itself      llama.cpp with fused attention (its default; float16 keys and values), and without it (float32)
    in_step     as emulated, but a value next to the border of two codes gets the one that llama.cpp gave it: nothing else
                of what llama.cpp computes enters, so that any other difference between the two would grow and show
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from agreement_suite.measures import Divergence, first_difference, greedy_summary
from agreement_suite.rounding import RoundingExecutor

from dejavu.bench.peers.process import PeerProcess
from dejavu.engine import NativeExecutor
from dejavu.models.gguf import GgufFile
from dejavu.models.sources import resolve
from dejavu.texts import read_documents
from dejavu.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

PEER = Path(__file__).with_name("agreement_suite") / "watched_llama_cpp.py"
LENGTH = 64
"""Tokens of a greedy text."""

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "Water boils at",
    "The three most important inventions of the nineteenth century were",
    "def fibonacci(n):",
    "My favourite recipe begins with",
    "In 1969, astronauts",
    "The difference between a virus and a bacterium is",
    "She opened the door and saw",
    "To change a flat tyre, first",
)


def write_f32(source: Path, target: Path) -> None:
    """Copy a GGUF file with all tensors dequantised to float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        sub = field.types[1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Run:
    """What is compared on, and where.

    Args:
        path: the GGUF file.
        tokenizer: the file's.
        options: of the command line.
        folder: for what the peer hands over.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, options: argparse.Namespace, folder: Path) -> None:
        documents = [text for text in read_documents(options.text) if len(text) > 200]
        self.path, self.threads, self.tokens, self.folder = path, options.threads, options.tokens, folder
        self.texts = documents[:200]
        self.ids = [tokenizer.encode(text, add_special=False) for text in self.texts]
        self.prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]

    def load(self, peer: PeerProcess, **how: Any) -> None:
        """Load the file into the peer."""
        peer.call("load", path=str(self.path), threads=self.threads, extra_buffers=False, **how)

    def pieces(self) -> Iterator[list[int]]:
        """Beginnings of documents, `tokens` or some more in all."""
        n = 0
        for ids in self.ids:
            if n >= self.tokens:
                return
            n += len(ids[:512])
            yield ids[:512]

    def logits(self, peer: PeerProcess, tokens: list[int]) -> np.ndarray:
        """The peer's, after each of `tokens`."""
        return np.load(peer.call("save_logits", tokens=tokens, path=str(self.folder / "logits.npy")))

    def inputs(self, peer: PeerProcess) -> dict[str, np.ndarray]:
        """What the peer's watched products read in its last run."""
        with np.load(peer.call("save_inputs", path=str(self.folder / "inputs.npz"))) as found:
            return dict(found)

    def same_tokens(self, peer: PeerProcess) -> dict[str, Any]:
        """Whether both make the same tokens of the documents."""
        same = sum(
            ids == peer.call("tokenize", text=text) for ids, text in zip(self.ids, self.texts, strict=True)
        )
        return {"documents_tokenized": len(self.texts), "documents_with_the_same_tokens": same}


def compare(run: Run, peer: PeerProcess, *, kv: str) -> dict[str, Any]:
    """The native engine in f32 beside llama.cpp; with float32 keys and values it keeps them so, which fused it does not."""
    executor = NativeExecutor.load(run.path, codec="f32", kv_dtype=kv, threads=run.threads, cache=False)
    run.load(peer, kv=kv, fused_attention=kv != "f32")
    result = run.same_tokens(peer)
    texts = [peer.call("greedy", tokens=prompt, n=LENGTH) for prompt in run.prompts]
    found = [first_difference(executor, *pair) for pair in zip(run.prompts, texts, strict=True)]
    divergence = Divergence()
    for tokens in run.pieces():
        ours = executor.prefill(np.array(tokens, np.int32), executor.new_cache(), all_logits=True)
        divergence.add(tokens, ours, run.logits(peer, tokens))
    executor.close()
    return result | greedy_summary(found) | divergence.summary()


def compare_rounded(run: Run, peer: PeerProcess, fused: PeerProcess) -> dict[str, Any]:
    """The three pairs of --as-q8; `fused`: llama.cpp with fused attention."""
    executor = RoundingExecutor(run.path)
    run.load(peer, kv="f32", fused_attention=False, watch=executor.watch)
    run.load(fused, kv="f16")
    result = run.same_tokens(peer)
    names = ("emulated", "itself", "in_step")
    greedy: dict[str, list[dict[str, Any] | None]] = {name: [] for name in names}
    for prompt in run.prompts:
        text = peer.call("greedy", tokens=prompt, n=LENGTH)
        other = fused.call("greedy", tokens=prompt, n=LENGTH)
        left = next((i for i in range(LENGTH) if text[i] != other[i]), None)
        greedy["itself"].append(None if left is None else {"token": left})
        greedy["emulated"].append(first_difference(executor, prompt, text))
        executor.follow(run.inputs(peer))
        greedy["in_step"].append(first_difference(executor, prompt, text))
        executor.follow(None)
    divergence = {name: Divergence() for name in names}
    for tokens in run.pieces():
        theirs, ids = run.logits(peer, tokens), np.array(tokens, np.int32)
        divergence["itself"].add(tokens, run.logits(fused, tokens), theirs)
        ours = executor.prefill(ids, executor.new_cache(), all_logits=True)
        divergence["emulated"].add(tokens, ours, theirs)
        executor.follow(run.inputs(peer))
        ours = executor.prefill(ids, executor.new_cache(), all_logits=True)
        divergence["in_step"].add(tokens, ours, theirs)
        executor.follow(None)
    result |= {name: greedy_summary(greedy[name]) | divergence[name].summary() for name in names}
    result["in_step"] |= executor.roundings()
    return result


def main() -> None:
    """Parse the command line, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, required=True, help="documents to compare logits on")
    parser.add_argument("--tokens", type=int, default=2048)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--as-f32", action="store_true", help="dequantise the file for both sides first")
    how.add_argument("--as-q8", action="store_true", help="round activations to 8 bits on our side too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name, PeerProcess(options.peer_python, PEER) as peer:
        folder, path = Path(name), resolve(options.model)
        if options.as_f32:
            write_f32(path, folder / "f32.gguf")
            path = folder / "f32.gguf"
        run = Run(path, Tokenizer.from_gguf(GgufFile(path).metadata), options, folder)
        result: dict[str, Any] = {"llama_cpp": peer.version}
        if options.as_q8:
            with PeerProcess(options.peer_python, PEER) as fused:
                result |= compare_rounded(run, peer, fused)
        else:
            result |= compare(run, peer, kv="f32" if options.as_f32 else "f16")
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
