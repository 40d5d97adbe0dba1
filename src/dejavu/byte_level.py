"""Byte-level BPE: its alphabet of 256 printable characters, and the patterns that cut text into words.

The patterns are named as in GGUF's `tokenizer.ggml.pre`. Each is applied to the pieces that the one before it
left; what lies between two matches is a piece of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)

BYTE_OF: dict[str, int] = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(_OTHERS)
}
"""Character of a byte-level vocabulary -> the byte that it stands for."""


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before merging, and what goes with it."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    """A word that is in the vocabulary is one token, whatever the merges say."""
    add_bos: bool = False
    """Begin texts with the BOS token where the file does not say."""


_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

GPT2 = PreTokenizer((_WORDS,))
QWEN2 = PreTokenizer((_QWEN2,))
_DIGITS_APART = PreTokenizer((r"\p{N}", _WORDS))
_LLAMA3_WHOLE = PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": GPT2,
    "olmo": GPT2,
    "mpt": GPT2,
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "llama-bpe": _LLAMA3_WHOLE,
    "llama3": _LLAMA3_WHOLE,
    "llama-v3": _LLAMA3_WHOLE,
    "falcon3": _LLAMA3_WHOLE,
    "dbrx": PreTokenizer((_LLAMA3,)),
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "stablelm2": QWEN2,
    "tekken": PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True),
    "bloom": PreTokenizer((_BLOOM,)),
}
