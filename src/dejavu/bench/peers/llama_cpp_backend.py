"""llama.cpp as a peer: loads GGUF files and times them. A backend of `child.py`, for a Python with llama-cpp-python.

`extra_buffers` chooses between llama.cpp's repacked weights (AMX and others) and the plain ones. Its AMX path ends the
process at the first prompt in version 0.3.36 on some machines, hence both are offered.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import llama_cpp
import numpy as np

VERSION = f"llama-cpp-python {llama_cpp.__version__}"
logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # what it writes last should say why it ended
_KV = {"f32": 0, "f16": 1, "bf16": 30}


class Backend:
    """One loaded model, driven through llama.cpp's own calls, as llama-bench does."""

    def __init__(self) -> None:
        llama_cpp.llama_backend_init()
        self.model: Any = None
        self.contexts: dict[int, tuple[Any, Any]] = {}

    def load(
        self, path: str, threads: int, context: int = 2048, kv: str = "f16", extra_buffers: bool = True
    ) -> None:
        """Load a file in place of the one before; `context`: positions of a sequence."""
        for old, batch in self.contexts.values():
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(old)
        self.contexts = {}
        if self.model:
            llama_cpp.llama_model_free(self.model)
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        options.use_extra_bufts = extra_buffers
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise RuntimeError("llama.cpp cannot load this file")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.threads, self.positions, self.kv, self.repacked = threads, context, kv, extra_buffers
        self.use(1)

    def use(self, sequences: int) -> None:
        """Switch to the context for so many sequences."""
        if sequences not in self.contexts:
            room = -(-self.positions // 256) * 256 * sequences  # llama.cpp rounds a sequence's share down
            options = self.context_options(room, sequences)
            context = llama_cpp.llama_init_from_model(self.model, options)
            if not context:
                raise RuntimeError("llama.cpp cannot make a context")
            self.contexts[sequences] = context, llama_cpp.llama_batch_init(room, 0, 1)
        self.context, self.batch = self.contexts[sequences]

    def context_options(self, room: int, sequences: int) -> Any:
        """Of a context with `room` positions for all its sequences together."""
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = room, min(room, 2048), 512
        options.n_seq_max = sequences
        options.n_threads = options.n_threads_batch = self.threads
        options.type_k = options.type_v = _KV[self.kv]
        return options

    def clear(self) -> None:
        """Forget all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def run(self, tokens: list[int], start: int, *, sequence: int = 0, all_logits: bool = False) -> None:
        """Append tokens to a sequence."""
        self.batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            self.put(i, token, start + i, sequence, all_logits or i == len(tokens) - 1)
        self.decode()

    def put(self, i: int, token: int, position: int, sequence: int, logits: bool) -> None:
        """Set entry `i` of the batch."""
        self.batch.token[i] = token
        self.batch.pos[i] = position
        self.batch.n_seq_id[i] = 1
        self.batch.seq_id[i][0] = sequence
        self.batch.logits[i] = logits

    def decode(self) -> None:
        """Run the batch."""
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")

    def time(self, kind: str, rows: list[list[int]], depth: int) -> dict[str, Any]:
        """As `dejavu.bench.timing.time_test`; rows [batch, depth + tokens].

        With repacked weights what comes before the steps is taken one by one and not timed: prompts may not survive.
        """
        singly = self.repacked and kind == "tg"
        piece = 1 if singly else 512
        self.use(len(rows))
        self.clear()
        start = time.perf_counter()
        for sequence, row in enumerate(rows):
            prompt = row[: len(row) if kind == "pp" else depth]
            for first in range(0, len(prompt), piece):
                self.run(prompt[first : first + piece], first, sequence=sequence)
                self.logits(-1)
        first_logits = time.perf_counter() - start
        marks = [time.perf_counter()]
        for position in range(depth, 0 if kind == "pp" else len(rows[0])):
            self.batch.n_tokens = len(rows)
            for sequence, row in enumerate(rows):
                self.put(sequence, row[position], position, sequence, True)
            self.decode()
            self.logits(-1)
            marks.append(time.perf_counter())
        if not np.isfinite(self.logits(-1)).all():
            raise RuntimeError("the logits are not finite")
        return {"first": None if singly else first_logits, "steps": np.diff(marks).tolist()}

    def logits(self, index: int) -> np.ndarray:
        """Of an entry of the batch that asked for them [vocab]."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, index)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def prompt(self, tokens: list[int]) -> float:
        """Seconds for tokens at once."""
        self.clear()
        start = time.perf_counter()
        self.run(tokens, 0)
        self.logits(-1)
        return time.perf_counter() - start

    def generate(self, tokens: list[int], n: int) -> float:
        """Seconds for `n` greedy tokens one by one, after others."""
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
        """`n` greedy tokens after others."""
        self.clear()
        self.run(tokens, 0)
        found = []
        for i in range(n):
            found.append(int(self.logits(-1).argmax()))
            self.run([found[-1]], len(tokens) + i)
        return found

    def all_logits(self, tokens: list[int]) -> np.ndarray:
        """After each token [t, vocab]."""
        self.clear()
        self.run(tokens, 0, all_logits=True)
        return np.stack([self.logits(i).copy() for i in range(len(tokens))])

    def tokenize(self, text: str) -> list[int]:
        """Token ids, none added."""
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

    def save_logits(self, tokens: list[int], path: str) -> str:
        """After each token, into a .npy file."""
        np.save(path, self.all_logits(tokens))
        return path

    def quantize(self, source: str, target: str, kind: str) -> str:
        """Write `source` anew in the type `kind`, such as Q4_K_M."""
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        if llama_cpp.llama_model_quantize(source.encode(), target.encode(), options) != 0:
            raise RuntimeError(f"llama.cpp cannot make {kind} of {source}")
        return target
