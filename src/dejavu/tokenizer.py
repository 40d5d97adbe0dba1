"""`Tokenizer`: text to token ids and back, from a GGUF file's metadata or a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from dejavu.byte_level import BYTE_OF, GPT2, QWEN2
from dejavu.errors import DejavuError, InputError, ModelFormatError, SourceError, UnsupportedModelError
from dejavu.gguf_tokenizer import build_from_gguf, byte_level_bpe, surround
from dejavu.models.folder_files import more_templates
from dejavu.models.spec import FETCH_AGAIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dejavu.models.loading import OpenModel

_DEFAULT = "default"
"""Name of the chat template that is used where no other is meant."""
_MAX_JSON = 256 << 20  # bytes; the largest tokenizer.json in use is about 35 MB


class Tokenizer:
    """Text to token ids and back.

    Args:
        backend: does the encoding; byte-level or SentencePiece-like.
        bos_id: the token that begins texts, if the model has one.
        eos_ids: tokens that end a text or a turn; the first is the model's EOS.
        chat_template: jinja2 source.
        named_templates: further ones by their names, such as "tool_use".

    Attributes:
        byte_level: tokens are spelled in the alphabet of `dejavu.byte_level`, else as SentencePiece does.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        chat_template: str | None = None,
        named_templates: Mapping[str, str] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.bos_id = bos_id
        self.eos_ids = tuple(eos_ids)
        self.chat_template = chat_template
        self.named_templates = dict(named_templates or {})
        self.byte_level, self._strip = _decoder_kind(backend)
        self._added = {i: (t.content, t.special) for i, t in backend.get_added_tokens_decoder().items()}
        self._bytes: dict[int, bytes] = {}
        self._embedded: int | None = None  # tokens that the model knows, as far as that was said

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build from the metadata of a GGUF file. See `build_from_gguf` for what is raised."""
        built = build_from_gguf(metadata)
        return cls(
            built.backend,
            bos_id=built.bos_id,
            eos_ids=built.eos_ids,
            chat_template=built.chat_template,
            named_templates=built.named_templates,
        )

    @classmethod
    def from_folder(cls, path: Path | str) -> Tokenizer:
        """Read a folder in Hugging Face layout: tokenizer.json, or vocab.json with merges.txt.

        Special tokens and the chat templates come from tokenizer_config.json, special_tokens_map.json,
        chat_template.jinja, additional_chat_templates, generation_config.json and config.json, those that there are.

        Raises:
            ModelFormatError: files are missing or damaged.
            SourceError: a file cannot be read.
            UnsupportedModelError: the tokenizer is of another kind.
        """
        path = Path(path)
        names = _read_json(path / "special_tokens_map.json") | _read_json(path / "tokenizer_config.json")
        if (path / "tokenizer.json").is_file():
            with _backend_errors(path / "tokenizer.json"):
                backend = Backend.from_str(_read_text(path / "tokenizer.json"))
        elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            backend = _read_vocab_and_merges(path, names)
        else:
            raise ModelFormatError(
                f"{path} has no tokenizer; tokenizer.json, or vocab.json with merges.txt, is needed",
                fix="save the tokenizer there with transformers: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)",
            )
        bos, eos = (_named_id(backend, names, key) for key in ("bos_token", "eos_token"))
        with _backend_errors(path / "tokenizer.json"):
            _apply_flags(backend, names, bos, eos)
        ends = _read_json(path / "generation_config.json").get("eos_token_id")
        if ends is None:
            ends = _read_json(path / "config.json").get("eos_token_id")
        listed = ends if isinstance(ends, list) else [ends]
        eos_ids = [eos, *(i for i in listed if isinstance(i, int))]
        templates = _read_chat_templates(path, names)
        return cls(
            backend,
            bos_id=bos,
            eos_ids=dict.fromkeys(i for i in eos_ids if i is not None),
            chat_template=templates.pop(_DEFAULT, None),
            named_templates=templates,
        )

    @classmethod
    def from_model(cls, model: OpenModel) -> Tokenizer:
        """The tokenizer of an open model. Raises `ModelFormatError` if it has more tokens (see `check_fits`)."""
        gguf = model.format == "gguf"
        tokenizer = cls.from_gguf(model.metadata) if gguf else cls.from_folder(model.path)
        tokenizer.check_fits(model.config.vocab_size)
        return tokenizer

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json and its companions; `from_folder` reads them back."""
        folder = Path(folder)
        template: object = self.chat_template
        if self.named_templates:
            default = {} if self.chat_template is None else {_DEFAULT: self.chat_template}
            named = (default | self.named_templates).items()
            template = [{"name": name, "template": source} for name, source in named]
        config = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "chat_template": template,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.backend.to_str(), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        ends = {"eos_token_id": list(self.eos_ids)}
        (folder / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return max(self.backend.get_vocab_size(with_added_tokens=True), max(self._added, default=-1) + 1)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token id by the token's text."""
        found: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return found

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that decides how texts are encoded and where they end; not of the chat template."""
        facts = [self.backend.to_str(), self.bos_id, self.eos_ids]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def bos_token(self) -> str | None:
        """Text of the BOS token."""
        return None if self.bos_id is None else self.backend.id_to_token(self.bos_id)

    @property
    def eos_token(self) -> str | None:
        """Text of the model's EOS token."""
        return self.backend.id_to_token(self.eos_ids[0]) if self.eos_ids else None

    def check_fits(self, vocab_size: int) -> None:
        """Raise `ModelFormatError` if there are more tokens than the model has embeddings.

        Tokens that were added to the tokenizer alone, as many models have them, are no reason; `encode` refuses them then.
        """
        more = self.vocab_size > vocab_size
        if more and max(self.vocabulary.values() - self._added.keys(), default=-1) >= vocab_size:
            raise ModelFormatError(
                f"the tokenizer has {self.vocab_size} tokens, the model embeds {vocab_size}",
                fix="use the tokenizer that belongs to this model",
            )
        self._embedded = vocab_size

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of `text`. Names of special tokens in the text become these tokens.

        Args:
            text: any valid Unicode.
            add_special: add BOS and EOS where the model wants them.

        Raises:
            InputError: the text holds half a surrogate pair, so it has no UTF-8 form, or a token that the model does not
                embed.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text is not valid Unicode: {error}", fix="remove the lone surrogate"
            ) from None
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special).ids
        if self._embedded is not None and max(ids, default=0) >= self._embedded:
            token = max(ids)
            raise InputError(
                f"the text holds {self.backend.id_to_token(token)!r}, token {token}; the model embeds {self._embedded}",
                fix="leave it out of the text",
            )
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """`encode`, but a text that begins with the name of BOS, as rendered chats do, gets no second one."""
        ids = self.encode(text)
        adds_bos = self.bos_id is not None and self.encode("")[:1] == [self.bos_id]
        return ids[1:] if adds_bos and ids[1:2] == [self.bos_id] else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of a whole sequence. Bytes that are not UTF-8 become U+FFFD."""
        data = b"".join(self.token_bytes(i, skip_special=skip_special) for i in ids)
        text = data.decode("utf-8", "replace")
        return text.removeprefix(" ") if self._strip else text

    def token_bytes(self, token_id: int, *, skip_special: bool = False) -> bytes:
        """The bytes that a token stands for, which may be a part of a character.

        Empty for an id without a token (padding of the embedding) and, with `skip_special`, for a control
        token.
        """
        added = self._added.get(token_id)
        if added is not None:
            content, special = added
            return b"" if special and skip_special else self._plain(content)
        data = self._bytes.get(token_id)
        if data is None:
            token = self.backend.id_to_token(token_id) if token_id >= 0 else None
            data = self._bytes[token_id] = b"" if token is None else self._to_bytes(token)
        return data

    def _to_bytes(self, token: str) -> bytes:
        if self.byte_level:
            # a token with a letter outside the alphabet was added as plain text
            return (
                bytes(map(BYTE_OF.__getitem__, token)) if BYTE_OF.keys() >= set(token) else self._plain(token)
            )
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes.fromhex(token[3:5])
            except ValueError:
                pass
        return self._plain(token)

    def _plain(self, token: str) -> bytes:
        return (token if self.byte_level else token.replace("▁", " ")).encode()


def _decoder_kind(backend: Backend) -> tuple[bool, bool]:
    """Whether tokens are byte-level (else SentencePiece-like), and whether a text loses its first space."""
    state = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {"type": None}
    steps = state.get("decoders", [state])
    types = [step["type"] for step in steps]
    if "ByteLevel" in types:
        return True, False
    spaces = any(s["type"] == "Replace" and s.get("pattern") == {"String": "▁"} for s in steps)
    if "Metaspace" in types or ("ByteFallback" in types and spaces):
        metaspace = any(s["type"] == "Metaspace" and s.get("prepend_scheme") != "never" for s in steps)
        return False, metaspace or "Strip" in types
    raise UnsupportedModelError(
        f"tokenizer.json decodes with {types}; supported: ByteLevel, Metaspace, ByteFallback with Replace",
    )


@contextmanager
def _backend_errors(path: Path) -> Iterator[None]:
    """Turn the bare exceptions (and panics) of the tokenizers library into typed errors."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, DejavuError):
            raise
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ModelFormatError(f"{path} is not a sound tokenizer: {error}", fix=FETCH_AGAIN) from error
        raise


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ModelFormatError(f"{path} has {path.stat().st_size} bytes; at most {_MAX_JSON} are read")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SourceError(
            f"cannot read {path}: {error.strerror or error}",
            fix=f"check its permissions, or {FETCH_AGAIN}",
        ) from error
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path} cannot be read: {error}", fix=FETCH_AGAIN) from error


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is not JSON: {error}", fix=FETCH_AGAIN) from error
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path} does not hold a JSON object", fix=FETCH_AGAIN)
    return value


def _named_id(backend: Backend, names: Mapping[str, Any], key: str) -> int | None:
    token = names.get(key)
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, (str, type(None))):
        raise _wrong(key, token, "a token's text")
    return None if token is None else backend.token_to_id(token)


def _wrong(key: str, value: object, needed: str) -> ModelFormatError:
    return ModelFormatError(
        f"the tokenizer's {key} is {value!r:.60}; {needed} or null is needed", fix=FETCH_AGAIN
    )


def _apply_flags(backend: Backend, names: Mapping[str, Any], bos: int | None, eos: int | None) -> None:
    """Let add_bos_token and add_eos_token of tokenizer_config.json overrule tokenizer.json."""
    now = backend.encode("").ids
    adds_bos = now[:1] == [bos]
    adds_eos = now[adds_bos:][-1:] == [eos]
    wants_bos, wants_eos = (
        adds if names.get(flag) is None else bool(names[flag])
        for flag, adds in (("add_bos_token", adds_bos), ("add_eos_token", adds_eos))
    )
    if (wants_bos, wants_eos) != (adds_bos, adds_eos):
        first = (str(backend.id_to_token(bos)), bos) if wants_bos and bos is not None else None
        last = (str(backend.id_to_token(eos)), eos) if wants_eos and eos is not None else None
        backend.post_processor = surround(first, last)


def _read_vocab_and_merges(path: Path, names: Mapping[str, Any]) -> Backend:
    """The older layout, for example of OPT: a GPT-2 tokenizer in two files."""
    vocab = _read_json(path / "vocab.json")
    if not all(isinstance(i, int) for i in vocab.values()):
        raise ModelFormatError(f"{path / 'vocab.json'} must map tokens to ids")
    lines = _read_text(path / "merges.txt").split("\n")
    merges = [
        (a, b) for a, space, b in (x.partition(" ") for x in lines if not x.startswith("#version")) if b
    ]
    backend = byte_level_bpe(
        vocab, merges, QWEN2 if names.get("tokenizer_class") == "Qwen2Tokenizer" else GPT2
    )
    listed = names.get("added_tokens_decoder", {})
    added = [t for t in (listed.values() if isinstance(listed, dict) else ()) if isinstance(t, dict)]
    tokens = {t["content"]: bool(t.get("special")) for t in added if isinstance(t.get("content"), str)}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        i = _named_id(backend, names, key)
        if i is not None:
            tokens[backend.id_to_token(i)] = True
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens if tokens[t]])
    backend.add_tokens([AddedToken(t, normalized=False) for t in tokens if not tokens[t]])
    return backend


def _read_chat_templates(path: Path, names: Mapping[str, Any]) -> dict[str, str]:
    """By their names."""
    found = _read_json(path / "chat_template.json").get("chat_template", names.get("chat_template"))
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    elif not isinstance(found, dict):
        found = {} if found is None else {_DEFAULT: found}
    if (path / "chat_template.jinja").is_file():
        found = {_DEFAULT: _read_text(path / "chat_template.jinja")}
    for file in more_templates(path):
        found[file.stem] = _read_text(file)
    for name, source in found.items():
        if not isinstance(name, str) or not isinstance(source, str):
            raise _wrong("chat_template", source, "a text")
    return found
