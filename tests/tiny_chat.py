"""A tiny chat model on disk, made without torch: random Llama weights, a byte tokenizer, a chat template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from pathlib import Path

D, FF, HEADS, KV_HEADS, LAYERS, CONTEXT = 32, 48, 4, 2, 2, 4096
SPECIAL = ("<|begin|>", "<|end|>")
TEMPLATE = (
    "<|begin|>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def build_tiny_chat(folder: Path, *, context: int = CONTEXT) -> Path:
    """Write the model into `folder`. Greedy, it never ends: the end token's logit is 0, others are larger."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    begin, end = (tokenizer.token_to_id(token) for token in SPECIAL)
    vocab = tokenizer.get_vocab_size()
    _write(
        folder / "tokenizer_config.json",
        {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "chat_template": TEMPLATE},
    )
    _write(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": D,
            "intermediate_size": FF,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": begin,
            "eos_token_id": end,
        },
    )
    save_file(_weights(vocab, end), str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def _weights(vocab: int, end: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    head = D // HEADS
    shapes = {
        "self_attn.q_proj": (HEADS * head, D),
        "self_attn.k_proj": (KV_HEADS * head, D),
        "self_attn.v_proj": (KV_HEADS * head, D),
        "self_attn.o_proj": (D, HEADS * head),
        "mlp.gate_proj": (FF, D),
        "mlp.up_proj": (FF, D),
        "mlp.down_proj": (D, FF),
    }
    embedding = rng.normal(size=(vocab, D)).astype(np.float32)
    embedding[end] = 0
    weights = {"model.embed_tokens.weight": embedding, "model.norm.weight": np.ones(D, np.float32)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, shape in shapes.items():
            weights[f"{prefix}{name}.weight"] = (rng.normal(size=shape) * 0.3).astype(np.float32)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{name}.weight"] = np.ones(D, np.float32)
    return weights


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
