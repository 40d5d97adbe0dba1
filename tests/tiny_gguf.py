"""Tiny GGUF files from saved Hugging Face models, following the conventions of llama.cpp's converter."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[np.float32]]

LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA = LLAMA | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
BLOOM = {
    "transformer.word_embeddings": "token_embd",
    "transformer.word_embeddings_layernorm": "token_embd_norm",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
NEOX = BLOOM | {
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
}
NAMES = {"llama": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gemma2": GEMMA, "gemma3": GEMMA}
NAMES |= {"bloom": BLOOM, "gptneox": NEOX}


def convert(folder: Path, path: Path, arch: str, **extra: Any) -> None:
    """Write the model in `folder` (one float32 safetensors file) as GGUF; `extra` are further options."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (options(config, arch) | extra).items():
        if key != "rope_freqs":
            add = {
                bool: writer.add_bool,
                int: writer.add_uint32,
                float: writer.add_float32,
                str: writer.add_string,
            }
            add[type(value)](f"{arch}.{key}", value)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    tensors = {rename(name, arch): value for name, value in load_file(folder / "model.safetensors").items()}
    if "rope_freqs" in extra:
        tensors["rope_freqs.weight"] = extra["rope_freqs"]
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(reorder(name, value, config, arch)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def options(config: dict[str, Any], arch: str) -> dict[str, Any]:
    """The architecture's metadata."""
    heads = config.get("n_head") or config["num_attention_heads"]
    d_model = config["hidden_size"]
    found: dict[str, Any] = {
        "embedding_length": d_model,
        "block_count": config.get("n_layer") or config["num_hidden_layers"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads", heads),
        "feed_forward_length": config.get("intermediate_size", 4 * d_model),
        "context_length": config.get("max_position_embeddings", 64),
    }
    if arch in ("bloom", "gptneox"):
        found["attention.layer_norm_epsilon"] = config.get("layer_norm_epsilon") or config["layer_norm_eps"]
    else:
        found["attention.layer_norm_rms_epsilon"] = config["rms_norm_eps"]
        if "head_dim" in config:
            found["attention.key_length"] = found["attention.value_length"] = config["head_dim"]
    if arch == "gptneox":
        rope = config["rope_parameters"]
        found["rope.dimension_count"] = int(d_model // heads * rope["partial_rotary_factor"])
        found["use_parallel_residual"] = config["use_parallel_residual"]
    elif arch in ("llama", "qwen2", "qwen3", "gemma2"):
        found["rope.freq_base"] = float(config["rope_parameters"]["rope_theta"])
    elif arch == "gemma3":
        found["rope.freq_base"] = float(config["rope_parameters"]["full_attention"]["rope_theta"])
    if arch in ("gemma2", "gemma3"):
        found["attention.sliding_window"] = config["sliding_window"]
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if config[name]:
                found[name] = float(config[name])
    return found


def rename(name: str, arch: str) -> str:
    """GGUF's name of a tensor."""
    module, suffix = name.rsplit(".", 1)
    for part in (".layers.", ".h."):
        if part in module:
            layer, module = module.split(part)[1].split(".", 1)
            return f"blk.{layer}.{NAMES[arch][module]}.{suffix}"
    return f"{NAMES[arch][module]}.{suffix}"


def reorder(name: str, value: NDArray[np.float32], config: dict[str, Any], arch: str) -> NDArray[np.float32]:
    """What the converter does to the numbers."""
    if arch == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config["num_attention_heads" if ".attn_q." in name else "num_key_value_heads"]
        halves = value.reshape(heads, 2, -1, *value.shape[1:])
        return halves.swapaxes(1, 2).reshape(value.shape)
    if ".attn_qkv." in name:
        heads = config.get("n_head") or config["num_attention_heads"]
        parts = value.reshape(heads, 3, -1, *value.shape[1:])
        return np.concatenate([parts[:, i].reshape(-1, *value.shape[1:]) for i in range(3)])
    if arch in ("gemma2", "gemma3") and "norm." in name:
        return value + 1
    return value
