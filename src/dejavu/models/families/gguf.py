"""What all architectures share in GGUF files: sizes, token ids and most names of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dejavu.errors import ModelFormatError
from dejavu.models.families.options import Options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import RawTensors

GGUF_LINEARS = {
    "q": "blk.{i}.attn_q",
    "k": "blk.{i}.attn_k",
    "v": "blk.{i}.attn_v",
    "o": "blk.{i}.attn_output",
    "gate": "blk.{i}.ffn_gate",
    "up": "blk.{i}.ffn_up",
    "down": "blk.{i}.ffn_down",
}
GGUF_SOURCES = {
    "embed": "token_embd",
    "attn_norm": "blk.{i}.attn_norm",
    **GGUF_LINEARS,
    "q_norm": "blk.{i}.attn_q_norm",
    "k_norm": "blk.{i}.attn_k_norm",
    "mlp_norm": "blk.{i}.ffn_norm",
    "final_norm": "output_norm",
    "head": "output",
}
GGUF_IGNORED = (r"^rope_freqs\.weight$", r"\.attn_rot_embd(\.weight)?$")
"""Read with the options, or a copy of what the options say."""


def dimensions_to_gguf(config: ModelConfig) -> dict[str, object]:
    """What `dimensions_from_gguf` reads, and the number that all families give their norms by."""
    norm = "layer_norm_rms_epsilon" if config.norm == "rms" else "layer_norm_epsilon"
    return {
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "feed_forward_length": config.d_ff,
        "context_length": config.max_context,
        f"attention.{norm}": config.norm_eps,
    }


def dimensions_from_gguf(
    options: Options, values: Mapping[str, object], tensors: RawTensors
) -> dict[str, Any]:
    """The sizes, the token ids and whether the head is tied: alike in all families."""
    names = set(tensors.names())
    d_model, n_heads = options.integer("embedding_length"), options.integer("attention.head_count")
    head_dim = options.integer("attention.key_length", d_model // max(n_heads, 1))
    options.require("attention.value_length", head_dim)
    options.require("attention.causal", True)
    options.integer("vocab_size", 0)  # the embedding has the last word
    options.text("tensor_data_layout", "")
    tokens = Options(values, where="tokenizer metadata", prefix="tokenizer.ggml.")
    shape = tensors.shape("token_embd.weight") if "token_embd.weight" in names else ()
    if len(shape) != 2:
        raise ModelFormatError("the model file has no matrix token_embd.weight")
    return {
        "vocab_size": shape[0],
        "d_model": d_model,
        "n_layers": options.layers("block_count"),
        "n_heads": n_heads,
        "n_kv_heads": options.integer("attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "d_ff": options.integer("feed_forward_length"),
        "tied_head": "output.weight" not in names,
        "bos_token_id": next(iter(tokens.ids("bos_token_id")), None),
        "eos_token_ids": tokens.ids("eos_token_id", "eot_token_id", "eom_token_id"),
    }
