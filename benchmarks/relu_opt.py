"""Make a small ReLU model: an OPT trained for some minutes on text, in Hugging Face layout.

No ReLU language model lies in the package indexes, and their natural zeros are what contextual sparsity was found on.
This one is far too small and too little trained to write well; it shows the zeros, and that they can be predicted.

    python benchmarks/relu_opt.py --text calibration.jsonl -o relu-opt --minutes 10
    dejavu analyze relu-opt --text heldout.jsonl
    dejavu train relu-opt --text calibration.jsonl -o plan --max-ppl-ratio 1.02

`--l1` adds that much times the mean activation to the loss, which makes more of them zero; 0 leaves it to the training.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dejavu.texts import read_documents

if TYPE_CHECKING:
    from collections.abc import Iterator

END = "</s>"
VALIDATION_DOCUMENTS = 200


def main() -> None:
    """Train, measure and save."""
    args = parse_args()
    torch.manual_seed(args.seed)
    texts = [text for path in args.text for text in read_documents(path)]
    order = np.random.default_rng(args.seed).permutation(len(texts))
    held_out = max(1, min(VALIDATION_DOCUMENTS, len(texts) // 20))
    tokenizer = train_tokenizer([texts[i] for i in order[held_out:]], args.vocab)
    validation, training = (
        encode(tokenizer, [texts[i] for i in part], args.length)
        for part in (order[:held_out], order[held_out:])
    )
    model = build_model(tokenizer, args)
    activations = record_activations(model)
    print(
        f"{model.num_parameters() / 1e6:.1f} million parameters, {training.size} tokens of text", flush=True
    )
    fit(model, training, activations, args)
    loss, density = judge(model, validation, activations)
    save(model, tokenizer, args.output)
    shares = ", ".join(f"{share:.3f}" for share in density)
    print(f"perplexity {math.exp(loss):.2f} on held-out documents; active neurons per layer: {shares}")
    print(f"saved in {args.output}")


def parse_args() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--neurons", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--l1", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """A byte-level BPE whose first token begins and ends texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts[:10_000], trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], length: int) -> np.ndarray:
    """All texts one after the other, each begun by `END`, cut into rows: [n, length + 1]."""
    end = tokenizer.token_to_id(END)
    ids = [i for encoding in tokenizer.encode_batch(texts) for i in (end, *encoding.ids)]
    rows = (len(ids) - 1) // length
    starts = length * np.arange(rows)[:, None] + np.arange(length + 1)
    return np.array(ids, np.int64)[starts]


def build_model(tokenizer: Tokenizer, args: argparse.Namespace) -> Any:
    """An untrained OPT."""
    end = tokenizer.token_to_id(END)
    config = transformers.OPTConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=args.width,
        word_embed_proj_dim=args.width,
        ffn_dim=args.neurons,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        max_position_embeddings=2 * args.length,
        activation_function="relu",
        dropout=0.0,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return transformers.OPTForCausalLM(config)


def record_activations(model: Any) -> list[torch.Tensor]:
    """A list that holds each layer's activations after a forward pass."""
    layers = model.model.decoder.layers
    found: list[torch.Tensor] = [torch.empty(0)] * len(layers)
    for i, layer in enumerate(layers):
        layer.activation_fn.register_forward_hook(
            lambda _module, _inputs, output, i=i: found.__setitem__(i, output)
        )
    return found


def fit(model: Any, rows: np.ndarray, activations: list[torch.Tensor], args: argparse.Namespace) -> None:
    """Train for a time; the learning rate rises for a tenth of it and then falls along a cosine."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.95), weight_decay=0.05)
    began, told, tokens = time.perf_counter(), 0.0, 0
    for batch in batches(rows, args.batch, args.seed):
        done = (time.perf_counter() - began) / (60 * args.minutes)
        if done >= 1:
            return
        for group in optimiser.param_groups:
            group["lr"] = args.rate * min(done * 10, (1 + math.cos(math.pi * done)) / 2)
        with torch.autocast("cpu", torch.bfloat16):
            loss = next_token_loss(model, batch)
            size = torch.stack([a.float().mean() for a in activations]).mean()
        (loss + args.l1 * size).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        tokens += batch.size
        if done - told > 0.05:
            told = done
            density = np.mean([float((a > 0).float().mean()) for a in activations])
            speed = tokens / (time.perf_counter() - began)
            print(f"{done:4.0%} loss {loss:.3f} density {density:.3f} {speed:.0f} tokens/s", flush=True)


def batches(rows: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """Rows without end, in another order each time."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(rows))
        for start in range(0, len(rows) - size + 1, size):
            yield rows[order[start : start + size]]


def next_token_loss(model: Any, batch: np.ndarray) -> torch.Tensor:
    """Mean nll, in nats, of rows [b, length + 1]."""
    ids = torch.from_numpy(batch)
    logits = model(input_ids=ids[:, :-1]).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def judge(model: Any, rows: np.ndarray, activations: list[torch.Tensor]) -> tuple[float, list[float]]:
    """Mean loss, and the share of active neurons of each layer."""
    losses, densities = [], []
    with torch.no_grad():
        for row in rows[:64]:
            losses.append(float(next_token_loss(model, row[None])))
            densities.append([float((a > 0).float().mean()) for a in activations])
    return float(np.mean(losses)), np.mean(densities, axis=0).tolist()


def save(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """In Hugging Face layout."""
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": END, "eos_token": END}))


if __name__ == "__main__":
    main()
