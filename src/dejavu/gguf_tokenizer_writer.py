"""GGUF metadata of a tokenizer: the inverse of `gguf_tokenizer`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dejavu.byte_level import PRE_TOKENIZERS
from dejavu.errors import UnsupportedModelError
from dejavu.gguf_tokenizer import END_OF_TURN, build_from_gguf, byte_level_bpe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenizers import Tokenizer as Backend

    from dejavu.models.gguf_header import MetadataValue
    from dejavu.tokenizer import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

_PROBE = (
    "Hello, world! It's 1 o'clock; they'LL pay $12,345.67 in 2026.\n\n\tdef f(x):\n        return x_1 + -x**2  # ok\r\n"
    " naïve café ÉTÉ straße İstanbul 中文字符，日本語テスト 한국어 हिन्दी ไทย עברית العربية ١٢٣ 🙂👩‍💻 ½ ² №  \n \n  x   y\n"
    "camelCase HTTPServer 3.14e-10 100000000 a1b2 'quoted' \"double\" --- ... !! <tag> http://a.b/c?d=e \u00a0\u2003 end "
)
"""Text on which tokenizers that cut or merge differently disagree."""


def tokenizer_metadata(
    tokenizer: Tokenizer, vocab_size: int, ends: Iterable[int] = ()
) -> dict[str, MetadataValue]:
    """Entries ``tokenizer.*`` from which `build_from_gguf` makes the same tokenizer.

    Args:
        tokenizer: byte-level BPE, or BPE that stands for SentencePiece.
        vocab_size: rows of the embedding; tokens are filled up to it.
        ends: what ends a text beside the tokenizer's own `eos_ids`, by the model's configuration.

    Raises:
        UnsupportedModelError: GGUF has no name for how this one cuts text, no place for all that ends one, or what is
            read back gives other tokens.
    """
    state = json.loads(tokenizer.backend.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        raise UnsupportedModelError(
            f"the tokenizer is of type {model['type']}; GGUF files are written for BPE only"
        )
    values: dict[str, Any] = _tokens(tokenizer, model, vocab_size)
    if tokenizer.byte_level:
        values |= {"model": "gpt2", "pre": _pre_tokenizer(tokenizer.backend, model)}
        values["merges"] = [" ".join(_pair(merge)) for merge in model["merges"]]
    else:
        values |= {"model": "llama", "scores": _scores(values["tokens"], model)}
        first = tokenizer.backend.encode("a", add_special_tokens=False).tokens[0]
        values["add_space_prefix"] = first.startswith("▁")
    now = tokenizer.backend.encode("").ids
    values["add_bos_token"] = now[:1] == [tokenizer.bos_id]
    last = now[values["add_bos_token"] :][-1:]
    values["add_eos_token"] = bool(last) and last == list(tokenizer.eos_ids[:1])
    ends = [i for i in dict.fromkeys((*tokenizer.eos_ids, *ends)) if i < vocab_size]
    named = {"bos": tokenizer.bos_id, **_end_names(ends, values)}
    values |= {f"{name}_token_id": i for name, i in named.items() if i is not None}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    if tokenizer.named_templates:
        metadata["tokenizer.chat_templates"] = list(tokenizer.named_templates)
    for name, source in tokenizer.named_templates.items():
        metadata[f"tokenizer.chat_template.{name}"] = source
    built = build_from_gguf(metadata)
    if lost := [values["tokens"][i] for i in ends if i not in built.eos_ids]:
        raise UnsupportedModelError(
            f"GGUF has no place for all {len(ends)} tokens that end a text of this model: {', '.join(lost)} would be lost",
            fix="convert to safetensors",
        )
    if built.backend.encode(_PROBE).ids != tokenizer.backend.encode(_PROBE).ids:
        raise UnsupportedModelError(
            "GGUF cannot say how this tokenizer works: what is read back gives other tokens",
            fix="convert to safetensors",
        )
    return metadata


def _tokens(tokenizer: Tokenizer, model: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Tokens and their types by id; ids without a token are filled up with unused ones."""
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [_UNUSED] * vocab_size
    for token, i in model["vocab"].items():
        tokens[i] = token
        is_byte = not tokenizer.byte_level and len(token) == 6 and token.startswith("<0x")
        types[i] = _BYTE if is_byte else _NORMAL
    for i, added in tokenizer.backend.get_added_tokens_decoder().items():
        if i < vocab_size:  # the others are in no text that the model can read
            tokens[i] = added.content
            types[i] = _CONTROL if added.special else _USER_DEFINED
    values: dict[str, Any] = {"tokens": tokens, "token_type": types}
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None:
        types[unknown] = _UNKNOWN
        values["unknown_token_id"] = unknown
    return values


def _end_names(ends: list[int], values: Mapping[str, Any]) -> dict[str, int]:
    """End tokens by GGUF's three names for them: the EOS first, then those that a reader does not know by their texts."""
    known = [i for i in ends if values["tokens"][i] in END_OF_TURN and values["token_type"][i] == _CONTROL]
    first, others = ends[:1], ends[1:]
    others.sort(key=lambda i: i in known)
    return dict(zip(("eos", "eot", "eom"), (*first, *others), strict=False))


def _pre_tokenizer(backend: Backend, model: dict[str, Any]) -> str:
    """The name under which GGUF knows this way to cut text into words."""
    pieces = backend.pre_tokenizer.pre_tokenize_str(_PROBE)
    for name, known in PRE_TOKENIZERS.items():
        if known.whole_words != bool(model.get("ignore_merges")):
            continue
        if byte_level_bpe({}, [], known).pre_tokenizer.pre_tokenize_str(_PROBE) == pieces:
            return name
    raise UnsupportedModelError(
        f"the tokenizer cuts text in a way that is none of {', '.join(PRE_TOKENIZERS)}",
        fix="convert to safetensors",
    )


def _scores(tokens: list[str], model: dict[str, Any]) -> list[float]:
    """A token's score is its rank among the merges: SentencePiece merges what scores highest."""
    rank: dict[str, float] = {}
    for i, merge in enumerate(model["merges"]):
        rank.setdefault("".join(_pair(merge)), -float(i))
    lowest = -float(len(model["merges"]) + 1)
    return [rank.get(token, lowest) for token in tokens]


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge
