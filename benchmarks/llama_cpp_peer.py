"""llama.cpp as a peer: a process that loads GGUF files and times them on request.

`extra_buffers` chooses between llama.cpp's repacked weights (AMX and others) and the plain ones. Its AMX path ends the
process at the first prompt in version 0.3.36 on some machines, hence both are offered.

Runs under any Python with llama-cpp-python (``pip install llama-cpp-python``). Reads one JSON command per line on
standard input and answers each with one JSON line: ``load``, ``prompt`` (seconds for n tokens at once), ``generate``
(seconds for n tokens one by one, greedy, after a short prompt), ``greedy`` (token ids), ``logits`` (written to a .npy
file), ``nll`` (of targets after tokens), ``tokenize``, ``quantize`` (a file of another type).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import llama_cpp
import numpy as np


class Peer:
    """One loaded model, driven through llama.cpp's own calls, as llama-bench does."""

    def __init__(self, path: str, threads: int, context: int, kv: str, extra_buffers: bool) -> None:
        llama_cpp.llama_backend_init()
        model_options = llama_cpp.llama_model_default_params()
        model_options.n_gpu_layers = 0
        model_options.use_extra_bufts = extra_buffers
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model_options)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, min(context, 2048), 512
        options.n_threads = options.n_threads_batch = threads
        options.type_k = options.type_v = {"f16": 1, "f32": 0}[kv]
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.batch = llama_cpp.llama_batch_init(context, 0, 1)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def run(self, tokens: list[int], start: int, *, all_logits: bool = False) -> None:
        self.batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            self.batch.token[i] = token
            self.batch.pos[i] = start + i
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = 0
            self.batch.logits[i] = all_logits or i == len(tokens) - 1
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")

    def logits(self, index: int) -> np.ndarray:
        pointer = llama_cpp.llama_get_logits_ith(self.context, index)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def prompt(self, tokens: list[int]) -> float:
        self.clear()
        start = time.perf_counter()
        self.run(tokens, 0)
        self.logits(-1)
        return time.perf_counter() - start

    def generate(self, tokens: list[int], n: int) -> float:
        self.clear()
        for i, token in enumerate(tokens):  # one by one: llama.cpp's AMX buffers may not survive a prompt
            self.run([token], i)
        token = int(self.logits(-1).argmax())
        start = time.perf_counter()
        for i in range(n):
            self.run([token], len(tokens) + i)
            token = int(self.logits(-1).argmax())
        return time.perf_counter() - start

    def greedy(self, tokens: list[int], n: int) -> list[int]:
        self.clear()
        self.run(tokens, 0)
        found = []
        for i in range(n):
            found.append(int(self.logits(-1).argmax()))
            self.run([found[-1]], len(tokens) + i)
        return found

    def all_logits(self, tokens: list[int]) -> np.ndarray:
        self.clear()
        self.run(tokens, 0, all_logits=True)
        return np.stack([self.logits(i).copy() for i in range(len(tokens))])

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) + 8))()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), room, len(room), False, True)
        return list(room[:n])

    def nll(self, tokens: list[int], targets: list[int]) -> float:
        """Sum over the last tokens of -log p(target)."""
        logits = self.all_logits(tokens)[-len(targets) :].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(targets)), targets]
        return float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())


def quantize(source: str, target: str, kind: str) -> str:
    """Write `source` anew in the type `kind`, such as Q4_K_M."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), options) != 0:
        raise RuntimeError(f"llama.cpp cannot make {kind} of {source}")
    return target


def main() -> None:
    """Answer commands until the input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    peer: Peer | None = None
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        name = command.pop("do")
        if name == "quantize":
            answer: Any = quantize(**command)
        elif name == "load":
            peer = Peer(**command)
            answer = llama_cpp.__version__
        elif peer is None:
            raise RuntimeError("no model is loaded")
        elif name == "logits":
            np.save(command["path"], peer.all_logits(command["tokens"]))
            answer = command["path"]
        else:
            answer = getattr(peer, name)(**command)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
