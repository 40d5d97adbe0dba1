"""A byte-level BPE tokenizer of about 400 tokens, trained on a few words, and its GGUF metadata."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

CORPUS = [
    "the cat sat on the mat, and the hat was flat.",
    "été 中文 😀 naïve café",
    "1234 + 5678 = 6912\n\n\tx  y",
] * 3
NORMAL, CONTROL = 1, 3


def train_byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


TRAINED = train_byte_level()


def byte_level_metadata(**changes: Any) -> dict[str, Any]:
    """GGUF metadata of the trained tokenizer."""
    state = json.loads(TRAINED.to_str())
    vocab: dict[str, int] = state["model"]["vocab"]
    tokens = [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])]
    merges = [" ".join(m) if isinstance(m, list) else m for m in state["model"]["merges"]]
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [CONTROL, CONTROL] + [NORMAL] * (len(tokens) - 2),
        "merges": merges,
        "bos_token_id": 1,
        "eos_token_id": 0,
    } | changes
    named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}
    return named | {"tokenizer.chat_template": "{{ messages }}"}
