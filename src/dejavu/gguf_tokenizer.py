"""Build a tokenizer from GGUF metadata: byte-level BPE ("gpt2") or SentencePiece BPE ("llama").

Token types in the file: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte. Control, unknown
and user-defined tokens are found in the text before anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dejavu.byte_level import PRE_TOKENIZERS, PreTokenizer
from dejavu.errors import ModelFormatError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_TOKEN = 1024  # characters; every way to cut a token in two is tried
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

END_OF_TURN = frozenset(
    (
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|end|>",
        "</s>",
    )
)
"""Control tokens that end a text or a turn, whichever of them the file names as EOS."""


@dataclass(frozen=True)
class BuiltTokenizer:
    """What a file says about text."""

    backend: Tokenizer
    bos_id: int | None
    eos_ids: tuple[int, ...]
    """The first is the one that the file names as EOS."""
    chat_template: str | None
    named_templates: dict[str, str]
    """Further ones, such as "tool_use"."""


def build_from_gguf(metadata: Mapping[str, Any]) -> BuiltTokenizer:
    """Build the tokenizer that the metadata describes.

    Raises:
        ModelFormatError: entries are missing, of the wrong type or contradict each other.
        UnsupportedModelError: the tokenizer is of another kind.
    """
    return _Builder(metadata).build()


class _Builder:
    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.kind = self.get("model", str)
        if self.kind is None:
            raise ModelFormatError("the GGUF file has no tokenizer (no tokenizer.ggml.model)")
        self.tokens: list[str] = self.array("tokens", str)
        if not self.tokens:
            raise ModelFormatError("the GGUF file has no tokenizer (no tokenizer.ggml.tokens)")
        self.vocab = {token: i for i, token in enumerate(self.tokens)}
        if len(self.vocab) != len(self.tokens):
            raise ModelFormatError("tokenizer.ggml.tokens holds a token twice")
        self.types: list[int] = self.array("token_type", int) or [1] * len(self.tokens)
        self.same_length("token_type", self.types)

    def build(self) -> BuiltTokenizer:
        if self.kind == "gpt2":
            name = self.get("pre", str) or "default"
            if name not in PRE_TOKENIZERS:
                raise UnsupportedModelError(
                    f"tokenizer.ggml.pre is {name!r}; supported: {', '.join(sorted(PRE_TOKENIZERS))}",
                    fix="use the model's Hugging Face folder, whose tokenizer.json is complete",
                )
            backend = self.byte_level(PRE_TOKENIZERS[name])
            add_bos, default_bos, default_eos = PRE_TOKENIZERS[name].add_bos, None, None
        elif self.kind == "llama":
            backend = self.sentencepiece()
            add_bos, default_bos, default_eos = True, 1, 2
        else:
            raise UnsupportedModelError(f"tokenizer.ggml.model is {self.kind!r}; supported: gpt2, llama")

        bos = self.token_id("bos", default_bos)
        eos = self.token_id("eos", default_eos)
        flag = self.get("add_bos_token", bool)
        if flag is not None:
            add_bos = flag
        self.add_tokens(backend)
        self.add_ends(backend, bos if add_bos else None, eos if self.get("add_eos_token", bool) else None)
        others = [self.token_id("eot", None), self.token_id("eom", None)]
        others += [i for name, i in self.vocab.items() if name in END_OF_TURN and self.types[i] == _CONTROL]
        ends = [i for i in (eos, *others) if i is not None]
        key = "tokenizer.chat_template"
        texts = {name: text for name, text in self.metadata.items() if isinstance(text, str)}
        named = {
            name.removeprefix(f"{key}."): text for name, text in texts.items() if name.startswith(f"{key}.")
        }
        return BuiltTokenizer(backend, bos, tuple(dict.fromkeys(ends)), texts.get(key), named)

    def byte_level(self, pre: PreTokenizer) -> Tokenizer:
        merges = []
        for line in self.array("merges", str):
            left, space, right = line.partition(" ")
            if not (left and space and right) or " " in right:
                raise ModelFormatError(f"tokenizer.ggml.merges holds {line[:40]!r}; two tokens are needed")
            merges.append((left, right))
        return byte_level_bpe(self.vocab, merges, pre)

    def sentencepiece(self) -> Tokenizer:
        """SentencePiece merges the adjacent pair whose union scores highest: BPE whose pairs rank by it."""
        scores: list[float] = self.array("scores", float)
        self.same_length("scores", scores)
        longest = max(map(len, self.tokens))
        if longest > _MAX_TOKEN:
            raise ModelFormatError(f"a token of {longest} characters; at most {_MAX_TOKEN} are supported")
        ranked = []
        for token, i in self.vocab.items():
            if self.types[i] not in (_CONTROL, _UNKNOWN, _BYTE):
                for cut in range(1, len(token)):
                    left, right = token[:cut], token[cut:]
                    if left in self.vocab and right in self.vocab:
                        ranked.append((-scores[i], i, cut, left, right))
        ranked.sort()
        unknown = self.token_id("unknown", self.types.index(_UNKNOWN) if _UNKNOWN in self.types else None)
        backend = Tokenizer(
            models.BPE(
                vocab=self.vocab,
                merges=[(left, right) for *_, left, right in ranked],
                unk_token=None if unknown is None else self.tokens[unknown],
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        prefix = self.get("add_space_prefix", bool) is not False
        spaces = [normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if prefix else spaces)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
        return backend

    def add_tokens(self, backend: Tokenizer) -> None:
        control: list[AddedToken] = []
        plain: list[AddedToken] = []
        for token, kind in zip(self.tokens, self.types, strict=True):
            if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED) and token:
                special = kind != _USER_DEFINED
                (control if special else plain).append(AddedToken(token, special=special, normalized=False))
        backend.add_special_tokens(control)
        backend.add_tokens(plain)

    def add_ends(self, backend: Tokenizer, bos: int | None, eos: int | None) -> None:
        if bos is not None or eos is not None:
            names = {i: self.tokens[i] for i in (bos, eos) if i is not None}
            backend.post_processor = surround(
                None if bos is None else (names[bos], bos), None if eos is None else (names[eos], eos)
            )

    def get(self, key: str, kind: type) -> Any:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is not None and not isinstance(value, kind):
            raise ModelFormatError(f"tokenizer.ggml.{key} is {str(value)[:40]!r}; {kind.__name__} is needed")
        return value

    def array(self, key: str, kind: type) -> list[Any]:
        values: list[Any] = self.get(key, list) or []
        if not all(isinstance(value, kind) for value in values):
            raise ModelFormatError(f"tokenizer.ggml.{key} must hold only values of type {kind.__name__}")
        return values

    def same_length(self, key: str, values: list[Any]) -> None:
        if len(values) != len(self.tokens):
            raise ModelFormatError(
                f"tokenizer.ggml.{key} has {len(values)} entries for {len(self.tokens)} tokens"
            )

    def token_id(self, name: str, default: int | None) -> int | None:
        value: int | None = self.get(f"{name}_token_id", int)
        if value is None:
            return default if default is not None and default < len(self.tokens) else None
        if not 0 <= value < len(self.tokens):
            raise ModelFormatError(f"tokenizer.ggml.{name}_token_id is {value} of {len(self.tokens)} tokens")
        return value


def byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]], pre: PreTokenizer) -> Tokenizer:
    """A byte-level BPE tokenizer, without added tokens.

    Raises:
        ModelFormatError: a merge names tokens that are not in the vocabulary.
    """
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.whole_words)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ModelFormatError(f"the tokenizer's vocabulary and merges do not fit: {error}") from error
    backend = Tokenizer(model)
    cuts: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, letters])
    backend.decoder = decoders.ByteLevel()
    return backend


def surround(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> processors.TemplateProcessing:
    """A post-processor that begins texts with `bos` and ends them with `eos` (token, id), where given."""
    parts = [bos[0] if bos else None, "$A", eos[0] if eos else None]
    return processors.TemplateProcessing(
        single=[part for part in parts if part is not None], special_tokens=[x for x in (bos, eos) if x]
    )
