"""Text to train on: documents of random words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

WORDS = (
    "the",
    "a",
    "cat",
    "dog",
    "hat",
    "mat",
    "sat",
    "ran",
    "of",
    "on",
    "but",
    "big",
    "red",
    "two",
    "17",
    "(no)",
    "yes",
)


def documents(count: int, words: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 2 * words))) + f" #{i}" for i in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
