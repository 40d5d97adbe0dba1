"""Agreement with llama.cpp on the same GGUF file: tokens, greedy text, KL divergence, perplexity.

    python benchmarks/agreement.py --peer-python PYTHON --text FILE [--model smollm2] [--json FILE]

llama.cpp multiplies quantised weights with 8-bit activations; our f32 codec holds the dequantised weights exactly. Part of
the divergence is therefore its rounding: ``--as-f32`` writes the dequantised weights to a float32 GGUF file first and
compares on that, where nothing is rounded on either side.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from dejavu.bench.peers.engines import find_engine
from dejavu.engine import NativeExecutor
from dejavu.models.gguf import GgufFile
from dejavu.models.sources import resolve
from dejavu.texts import read_documents
from dejavu.tokenizer import Tokenizer

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


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of log-probabilities, float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def greedy(executor: NativeExecutor, tokens: list[int], n: int) -> list[int]:
    """Greedy continuation on the decode path."""
    cache = executor.new_cache()
    logits = executor.prefill(np.array(tokens, np.int32), cache)
    found = []
    for _ in range(n):
        found.append(int(logits[0].argmax()))
        logits = executor.decode(np.array(found[-1:], np.int32), [cache])
    return found


def main() -> None:
    """Parse the command line, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, required=True, help="documents to compare logits on")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--as-f32", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder, find_engine("llama.cpp").start(options.peer_python) as peer:
        path = resolve(options.model)
        if options.as_f32:
            target = Path(folder) / "f32.gguf"
            write_f32(path, target)
            path = target
        tokenizer = Tokenizer.from_gguf(GgufFile(path).metadata)
        kv = "f32" if options.as_f32 else "f16"
        executor = NativeExecutor.load(path, codec="f32", kv_dtype=kv, threads=options.threads, cache=False)
        peer.call("load", path=str(path), threads=options.threads, kv=kv, extra_buffers=False)

        documents = [text for text in read_documents(options.text) if len(text) > 200]
        ids, same_tokens = [], 0
        for text in documents[:200]:
            found = tokenizer.encode(text, add_special=False)
            same_tokens += found == peer.call("tokenize", text=text)
            ids.append(found)
        same_text = 0
        for prompt in PROMPTS:
            tokens = tokenizer.encode(prompt)
            same_text += greedy(executor, tokens, 64) == peer.call("greedy", tokens=tokens, n=64)

        divergence, same_top, ours_nll, peer_nll = [], [], [], []
        for tokens in ids:
            if len(divergence) >= options.tokens:
                break
            tokens = tokens[:512]
            ours = executor.prefill(np.array(tokens, np.int32), executor.new_cache(), all_logits=True)
            theirs = np.load(peer.call("save_logits", tokens=tokens, path=str(Path(folder) / "logits.npy")))
            p, q = log_softmax(ours), log_softmax(theirs)
            divergence += (np.exp(p) * (p - q)).sum(axis=1).tolist()
            same_top += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
            ours_nll += (-p[np.arange(len(tokens) - 1), tokens[1:]]).tolist()
            peer_nll += (-q[np.arange(len(tokens) - 1), tokens[1:]]).tolist()
        result = {
            "llama_cpp": peer.version,
            "documents_tokenized": min(len(documents), 200),
            "documents_with_the_same_tokens": same_tokens,
            "greedy_texts_equal": f"{same_text} of {len(PROMPTS)}",
            "tokens": len(divergence),
            "mean_kl": float(np.mean(divergence)),
            "median_kl": float(np.median(divergence)),
            "same_top_1": float(np.mean(same_top)),
            "our_perplexity": float(np.exp(np.mean(ours_nll))),
            "peer_perplexity": float(np.exp(np.mean(peer_nll))),
        }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
