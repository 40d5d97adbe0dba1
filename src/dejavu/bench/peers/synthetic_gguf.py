"""GGUF files of any Llama shape with made-up weights: speed does not depend on the values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dejavu.errors import UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

    from dejavu.models.config import ModelConfig


def write_synthetic_gguf(path: Path, config: ModelConfig, kind: str, seed: int = 0) -> None:
    """A Llama of `config`'s shape with random weights of GGUF type `kind` (BF16, Q8_0, Q4_0, Q4_1, ...).

    Rows repeat every 64: speed does not depend on the values. Embedding and head are Q8_0 beside 4-bit types, as
    ours are int8.

    Raises:
        UnsupportedModelError: the shape is not a Llama's.
    """
    if config.family != "llama":
        raise UnsupportedModelError(
            f"synthetic GGUF files are written for shapes of Llama, not of {config.family}",
            fix="compare a real model, or another --shape",
        )
    import gguf

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
    if not config.tied_head:
        add("output.weight", config.vocab_size, d, outer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
