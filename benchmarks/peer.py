"""Our side of `llama_cpp_peer.py`: starts it, talks to it, and writes GGUF files of any Llama shape for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

if TYPE_CHECKING:
    from dejavu.models.config import ModelConfig

SAME_BITS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_1"}
"""Our codec -> the GGUF type of the same number of bits per weight (int4 and Q4_1: scale and minimum per 32)."""


class LlamaCpp:
    """A llama.cpp process. Use as a context manager."""

    def __init__(self, python: str = sys.executable) -> None:
        script = Path(__file__).with_name("llama_cpp_peer.py")
        self._process = subprocess.Popen(
            [python, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version = ""
        self.survives_prompts = True

    @classmethod
    def try_prompt(cls, python: str, path: Path, threads: int) -> bool:
        """Whether a process with repacked weights survives a prompt of several tokens."""
        with cls(python) as peer:
            peer.load(path, threads)
            try:
                peer.call("prompt", tokens=list(range(3, 35)))
            except RuntimeError:
                return False
        return True

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(60)

    def call(self, do: str, **arguments: Any) -> Any:
        """Run one command there and return its answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the peer was closed")
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("llama.cpp is not there: pip install llama-cpp-python, or give --peer-python")
        return json.loads(line)

    def load(
        self, path: Path, threads: int, *, context: int = 2048, kv: str = "f16", extra_buffers: bool = True
    ) -> None:
        """Load a GGUF file, in place of the one before."""
        self.version = self.call(
            "load", path=str(path), threads=threads, context=context, kv=kv, extra_buffers=extra_buffers
        )


def write_gguf(path: Path, config: ModelConfig, kind: str, seed: int = 0) -> None:
    """A Llama of `config`'s shape with random weights of GGUF type `kind` (BF16, Q8_0, Q4_0, Q4_1, ...).

    Rows repeat every 64: speed does not depend on the values. Embedding and head are Q8_0 beside 4-bit types, as
    ours are int8.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    tokens = [b"<unk>", b"<s>", b"</s>"] + [f"t{i}".encode() for i in range(3, config.vocab_size)]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3] + [1] * (len(tokens) - 3))
    random = np.random.default_rng(seed)

    def add(name: str, rows: int, columns: int, kind: str) -> None:
        quantisation = gguf.GGMLQuantizationType[kind]
        values = random.standard_normal((64, columns), np.float32) * np.float32(columns**-0.5)
        piece = gguf.quants.quantize(values, quantisation)
        data = np.tile(piece, (-(-rows // 64), 1))[:rows]
        writer.add_tensor(name, data, raw_dtype=quantisation)

    def add_norm(name: str) -> None:
        writer.add_tensor(name, np.ones(config.d_model, np.float32))

    d, kv = config.d_model, config.n_kv_heads * config.head_dim
    outer = "Q8_0" if kind.startswith("Q4") else kind
    add("token_embd.weight", config.vocab_size, d, outer)
    for i in range(config.n_layers):
        p = f"blk.{i}."
        add_norm(p + "attn_norm.weight")
        add(p + "attn_q.weight", d, d, kind)
        add(p + "attn_k.weight", kv, d, kind)
        add(p + "attn_v.weight", kv, d, kind)
        add(p + "attn_output.weight", d, d, kind)
        add_norm(p + "ffn_norm.weight")
        add(p + "ffn_gate.weight", config.d_ff, d, kind)
        add(p + "ffn_up.weight", config.d_ff, d, kind)
        add(p + "ffn_down.weight", d, config.d_ff, kind)
    add_norm("output_norm.weight")
    add("output.weight", config.vocab_size, d, outer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
