"""Tokenizers from GGUF metadata and from Hugging Face folders."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from dejavu.byte_level import BYTE_OF, PRE_TOKENIZERS
from dejavu.detokenizer import Detokenizer
from dejavu.errors import InputError, ModelFormatError, SourceError, UnsupportedModelError
from dejavu.gguf_tokenizer_writer import tokenizer_metadata
from dejavu.models.folder_files import TEXT_FILES, copy_texts
from dejavu.models.gguf import GgufFile
from dejavu.tokenizer import Tokenizer
from tiny_tokenizer import CORPUS, TRAINED, byte_level_metadata

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6

BYTE_LEVEL = Tokenizer.from_gguf(byte_level_metadata())

SPM_WORDS = [
    "▁",
    "a",
    "b",
    "c",
    "é",
    "▁a",
    "ab",
    "ba",
    "abc",
    "▁ab",
    "▁▁",
    "▁▁▁▁",
    "ca",
    "cab",
    "▁cab",
    "aa",
    "éa",
]
SPM_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *SPM_WORDS, "<tool>"]
SPM_TYPES = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(SPM_WORDS), USER]
SPM_SCORES = [0.0] * 259 + [-float((i * 7) % len(SPM_WORDS)) for i in range(len(SPM_WORDS))] + [0.0]


def spm_metadata(**changes: Any) -> dict[str, Any]:
    metadata = {
        "model": "llama",
        "tokens": SPM_TOKENS,
        "token_type": SPM_TYPES,
        "scores": SPM_SCORES,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


SPM = Tokenizer.from_gguf(spm_metadata())


def spm_pieces(text: str) -> list[str]:
    """The definition: merge the adjacent pair whose union has the highest score, the leftmost of equals."""
    score = dict(zip(SPM_TOKENS, SPM_SCORES, strict=True))
    symbols = list(text.replace(" ", "▁"))
    while True:
        pairs = [(score[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in score]
        if not pairs:
            break
        i = -max(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    pieces: list[str] = []
    for symbol in symbols:
        pieces += [symbol] if symbol in score else [f"<0x{byte:02X}>" for byte in symbol.encode()]
    return pieces


def test_alphabet_is_that_of_the_library() -> None:
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF.values()) == list(range(256))


@given(st.text(max_size=40))
def test_byte_level_encodes_like_the_tokenizer_it_was_made_from(text: str) -> None:
    assert BYTE_LEVEL.encode(text) == TRAINED.encode(text).ids


@given(st.text(max_size=40))
def test_byte_level_round_trip_and_stream(text: str) -> None:
    ids = BYTE_LEVEL.encode(text)
    assert BYTE_LEVEL.decode(ids, skip_special=False) == text
    stream = Detokenizer(BYTE_LEVEL, skip_special=False)
    assert "".join(stream.push(i) for i in ids) + stream.finish() == text


@given(st.lists(st.integers(0, 399), max_size=20), st.booleans())
def test_decode_like_the_library(ids: list[int], skip: bool) -> None:
    ids = [i % BYTE_LEVEL.vocab_size for i in ids]
    assert BYTE_LEVEL.decode(ids, skip_special=skip) == BYTE_LEVEL.backend.decode(
        ids, skip_special_tokens=skip
    )


@given(st.text("abcé ▁中\n", min_size=1, max_size=40))
def test_spm_segments_like_its_definition(text: str) -> None:
    assert [SPM_TOKENS[i] for i in SPM.encode(text, add_special=False)] == spm_pieces(" " + text)


@given(st.text("abcé 中\n😀", max_size=40))
def test_spm_round_trip_and_stream(text: str) -> None:
    ids = SPM.encode(text)
    assert ids[0] == 1
    assert SPM.decode(ids) == text == SPM.backend.decode(ids)
    stream = Detokenizer(SPM)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == (" " + text if text else "")
    assert all("\ufffd" not in piece for piece in pieces)


def test_spm_without_space_prefix() -> None:
    tokenizer = Tokenizer.from_gguf(
        spm_metadata(add_space_prefix=False, add_bos_token=False, add_eos_token=True)
    )
    assert tokenizer.encode("ab") == [SPM_TOKENS.index("ab"), 2]
    assert tokenizer.decode([SPM_TOKENS.index("▁ab")]) == " ab"


def test_special_tokens_in_text() -> None:
    assert SPM.encode("a<tool></s>b", add_special=False) == [
        SPM_TOKENS.index("▁a"), len(SPM_TOKENS) - 1, 2, SPM_TOKENS.index("▁"), SPM_TOKENS.index("b"),
    ]  # fmt: skip
    ids = BYTE_LEVEL.encode("a<|end|>b")
    assert ids[1] == 0
    assert BYTE_LEVEL.decode(ids) == "ab"
    assert BYTE_LEVEL.decode(ids, skip_special=False) == "a<|end|>b"
    assert SPM.decode([len(SPM_TOKENS) - 1]) == "<tool>"  # user defined: not special


def test_special_ids_and_flags() -> None:
    assert (BYTE_LEVEL.bos_id, BYTE_LEVEL.eos_ids, BYTE_LEVEL.bos_token, BYTE_LEVEL.eos_token) == (
        1, (0,), "<s>", "<|end|>",
    )  # fmt: skip
    assert BYTE_LEVEL.chat_template == "{{ messages }}"
    assert BYTE_LEVEL.encode("") == []
    both = Tokenizer.from_gguf(byte_level_metadata(add_bos_token=True, add_eos_token=True))
    assert both.encode("") == [1, 0]
    assert both.encode("", add_special=False) == []
    assert SPM.encode("") == [1]
    assert (SPM.bos_id, SPM.eos_ids) == (1, (2,))
    other_eos = Tokenizer.from_gguf(byte_level_metadata(eos_token_id=1))
    assert other_eos.eos_ids == (1, 0)  # <|end|> ends a turn by its name


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "I'll pay 1234  now!\n", ["I", "'ll", " pay", " 1234", " ", " now", "!", "\n"]),
        ("smollm", "x 12\n y", ["x", " ", "1", "2", "\n", " y"]),
        ("llama-bpe", "I'LL 12345!\n\n x", ["I", "'LL", " ", "123", "45", "!\n\n", " x"]),
        ("qwen2", "a 123.b", ["a", " ", "1", "2", "3", ".b"]),
        ("default", "a+b 12345", ["a", "+", "b", " ", "123", "45"]),
        ("tekken", "HelloWORLDx 12", ["Hello", "WORLDx", " ", "1", "2"]),
        ("bloom", "a, b|c d", ["a", ",", " b", "|", "c", " d"]),
    ],
)
def test_words_of_pre_tokenizers(pre: str, text: str, words: list[str]) -> None:
    backend = Tokenizer.from_gguf(byte_level_metadata(pre=pre)).backend
    assert backend.pre_tokenizer is not None
    cut = [text[a:b] for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert cut == words


def test_whole_words_of_llama3() -> None:
    """A word in the vocabulary is one token even if no merge makes it."""
    metadata = byte_level_metadata()
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    changes = {"tokens": [*tokens, "zzz"], "token_type": [*types, NORMAL], "add_bos_token": False}
    assert Tokenizer.from_gguf(byte_level_metadata(pre="llama-bpe", **changes)).encode("zzz") == [len(tokens)]
    assert len(Tokenizer.from_gguf(byte_level_metadata(pre="qwen2", **changes)).encode("zzz")) == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": None}, ModelFormatError, "no tokenizer"),
        ({"model": "bert"}, UnsupportedModelError, "supported: gpt2, llama"),
        ({"model": 3}, ModelFormatError, "tokenizer.ggml.model"),
        ({"pre": "klingon"}, UnsupportedModelError, "smollm"),
        ({"tokens": None}, ModelFormatError, "no tokenizer"),
        ({"tokens": ["a", "a"]}, ModelFormatError, "twice"),
        ({"tokens": ["a", 1]}, ModelFormatError, "tokens"),
        ({"token_type": [1]}, ModelFormatError, "token_type has 1 entries"),
        ({"merges": ["ab"]}, ModelFormatError, "two tokens"),
        ({"merges": ["zq qz"]}, ModelFormatError, "do not fit"),
        ({"eos_token_id": 10**6}, ModelFormatError, "eos_token_id"),
        ({"bos_token_id": "1"}, ModelFormatError, "bos_token_id"),
    ],
)
def test_bad_metadata(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tokenizer.from_gguf(byte_level_metadata(**changes))


FLAGS = [
    f"tokenizer.ggml.{name}"
    for name in ("add_bos_token", "add_eos_token", "add_space_prefix", "unknown_token_id", "eot_token_id")
]
JUNK = st.one_of(
    st.none(),
    st.integers(-3, 500),
    st.floats(),
    st.booleans(),
    st.text(max_size=3),
    st.lists(st.one_of(st.text("ab ", max_size=3), st.integers(-1, 7), st.floats()), max_size=4),
)


@given(
    st.sampled_from([byte_level_metadata(), spm_metadata()]),
    st.dictionaries(
        st.sampled_from(sorted({*byte_level_metadata(), *spm_metadata(), *FLAGS})),
        JUNK,
        min_size=1,
        max_size=3,
    ),
    st.text(max_size=9),
)
def test_damaged_metadata_is_a_typed_error(metadata: dict[str, Any], junk: dict[str, Any], text: str) -> None:
    with contextlib.suppress(ModelFormatError, UnsupportedModelError):
        tokenizer = Tokenizer.from_gguf(metadata | junk)
        tokenizer.decode(tokenizer.encode(text))


def test_bad_spm_scores() -> None:
    with pytest.raises(ModelFormatError, match="scores has 0 entries"):
        Tokenizer.from_gguf(spm_metadata(scores=None))


def test_vocabulary_must_fit_the_model() -> None:
    BYTE_LEVEL.check_fits(BYTE_LEVEL.vocab_size)
    with pytest.raises(ModelFormatError, match=f"embeds {BYTE_LEVEL.vocab_size - 1}"):
        BYTE_LEVEL.check_fits(BYTE_LEVEL.vocab_size - 1)


def test_added_tokens_that_the_model_does_not_embed() -> None:
    """Many models have them, such as <pad>; only a text that holds one is refused."""
    backend = Backend.from_str(TRAINED.to_str())
    size = backend.get_vocab_size()
    backend.add_special_tokens(["<pad>", "<mask>"])
    tokenizer = Tokenizer(backend, bos_id=1, eos_ids=[0])
    assert tokenizer.encode("the <pad>")[-1] == size
    tokenizer.check_fits(size)
    assert tokenizer.encode("the <s>") == TRAINED.encode("the <s>").ids
    with pytest.raises(InputError, match=f"holds '<pad>', token {size}; the model embeds {size}"):
        tokenizer.encode("the <pad>")
    with pytest.raises(ModelFormatError, match=f"embeds {size - 1}"):
        tokenizer.check_fits(size - 1)
    copy = Tokenizer.from_gguf(tokenizer_metadata(tokenizer, size))
    assert copy.vocab_size == size
    assert copy.encode("the cat <s>") == TRAINED.encode("the cat <s>").ids


def test_ids_without_token_stand_for_nothing() -> None:
    assert BYTE_LEVEL.token_bytes(10**6) == b""
    assert BYTE_LEVEL.token_bytes(-1) == b""


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InputError, match="surrogate"):
        BYTE_LEVEL.encode("a\ud800")


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SPM], ids=["byte-level", "spm"])
def test_saved_and_read_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.from_folder(tmp_path / "saved")
    for name in ("bos_id", "eos_ids", "chat_template", "vocab_size", "bos_token", "eos_token"):
        assert getattr(again, name) == getattr(tokenizer, name)
    for text in (*CORPUS, "", " ", "a</s><|end|>b", "😀"):
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids
        assert again.decode(ids, skip_special=False) == tokenizer.decode(ids, skip_special=False)
        assert [again.token_bytes(i) for i in ids] == [tokenizer.token_bytes(i) for i in ids]


def write(folder: Path, **files: Any) -> Path:
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def test_folder_with_all_its_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        tokenizer__json=TRAINED.to_str(),
        tokenizer_config__json={
            "bos_token": {"content": "<s>"},
            "eos_token": "<|end|>",
            "add_bos_token": True,
            "chat_template": "old",
        },
        generation_config__json={"eos_token_id": [0, 7]},
        chat_template__jinja="new",
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.chat_template) == (1, (0, 7), "new")
    assert tokenizer.encode("the") == [1, *TRAINED.encode("the").ids]


def test_eos_of_config_and_named_templates(tmp_path: Path) -> None:
    template = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    write(
        tmp_path,
        tokenizer__json=TRAINED.to_str(),
        config__json={"eos_token_id": 5},
        tokenizer_config__json={"chat_template": template},
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.eos_ids, tokenizer.chat_template) == ((5,), "d")


def test_named_templates_of_all_forms(tmp_path: Path) -> None:
    named = {"tool_use": "t", "rag": "r"}
    entries = [{"name": name, "template": source} for name, source in {"default": "d", **named}.items()]
    write(tmp_path, tokenizer__json=TRAINED.to_str(), tokenizer_config__json={"chat_template": entries})
    listed = Tokenizer.from_folder(tmp_path)
    listed.save(tmp_path / "saved")
    write(tmp_path, tokenizer_config__json={"chat_template": "old"}, chat_template__jinja="d")
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    for name, source in named.items():
        (more / f"{name}.jinja").write_text(source)
    values = {f"tokenizer.chat_template.{name}": source for name, source in named.items()}
    gguf = byte_level_metadata() | values | {"tokenizer.chat_template": "d"}
    written = tokenizer_metadata(Tokenizer.from_gguf(gguf), TRAINED.get_vocab_size())
    for tokenizer in (
        listed,
        Tokenizer.from_folder(tmp_path / "saved"),
        Tokenizer.from_folder(tmp_path),
        Tokenizer.from_gguf(gguf),
        Tokenizer.from_gguf(written),
    ):
        assert (tokenizer.chat_template, tokenizer.named_templates) == ("d", named)
    copy_texts(tmp_path, tmp_path / "saved", TEXT_FILES)
    assert Tokenizer.from_folder(tmp_path / "saved").named_templates == named
    write(tmp_path, tokenizer_config__json={"chat_template": entries[1:]})
    (tmp_path / "chat_template.jinja").unlink()
    assert Tokenizer.from_folder(tmp_path).chat_template is None


def test_flags_overrule_the_post_processor(tmp_path: Path) -> None:
    with_bos = Tokenizer.from_gguf(byte_level_metadata(add_bos_token=True))
    with_bos.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).encode("") == [1]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write(tmp_path, tokenizer_config__json=config | {"add_bos_token": None})
    assert Tokenizer.from_folder(tmp_path).encode("") == [1]
    write(tmp_path, tokenizer_config__json=config | {"add_bos_token": False, "add_eos_token": True})
    assert Tokenizer.from_folder(tmp_path).encode("") == [0]


def test_vocab_and_merges_of_opt(tmp_path: Path) -> None:
    state = json.loads(TRAINED.to_str())["model"]
    merges = [" ".join(m) if isinstance(m, list) else m for m in state["merges"]]
    write(
        tmp_path,
        vocab__json=state["vocab"],
        merges__txt="#version: 0.2\n" + "\n".join(merges) + "\n",
        special_tokens_map__json={"eos_token": "<s>", "bos_token": "<s>", "pad_token": "<|end|>"},
        tokenizer_config__json={"add_bos_token": True, "tokenizer_class": "GPT2Tokenizer"},
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (1,))
    for text in CORPUS:
        assert tokenizer.encode(text) == [1, *TRAINED.encode(text).ids]
    assert tokenizer.decode([1, 0, *TRAINED.encode("hat").ids]) == "hat"


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, ModelFormatError, "no tokenizer"),
        ({"tokenizer__json": "{"}, ModelFormatError, "not a sound tokenizer"),
        ({"tokenizer__json": "{}"}, ModelFormatError, "not a sound tokenizer"),
        ({"vocab__json": ["a"], "merges__txt": ""}, ModelFormatError, "JSON object"),
        ({"vocab__json": {"a": "b"}, "merges__txt": ""}, ModelFormatError, "tokens to ids"),
        ({"vocab__json": {"a": 0}, "merges__txt": "a b"}, ModelFormatError, "do not fit"),
        ({"tokenizer__json": TRAINED.to_str(), "tokenizer_config__json": "x"}, ModelFormatError, "not JSON"),
        ({"tokenizer__json": TRAINED.to_str(), "config__json": "[" * 100_000}, ModelFormatError, "not JSON"),
        ({"tokenizer__json": Backend(models.BPE()).to_str()}, UnsupportedModelError, "supported: ByteLevel"),
    ],
)
def test_bad_folders(tmp_path: Path, files: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tokenizer.from_folder(write(tmp_path, **files))


@given(st.data())
def test_damaged_tokenizer_json_is_a_typed_error(data: st.DataObject) -> None:
    text = TRAINED.to_str()
    start = data.draw(st.integers(0, len(text) - 1))
    junk = data.draw(st.sampled_from(["", "{", "null", '"', "-1", "9" * 30, "[]"]))
    with tempfile.TemporaryDirectory() as folder:
        write(
            Path(folder), tokenizer__json=text[:start] + junk + text[start + data.draw(st.integers(0, 9)) :]
        )
        with contextlib.suppress(ModelFormatError, UnsupportedModelError):
            Tokenizer.from_folder(folder).encode("the cat")


def test_every_pre_tokenizer_loses_nothing() -> None:
    for pre in PRE_TOKENIZERS:
        tokenizer = Tokenizer.from_gguf(byte_level_metadata(pre=pre, add_bos_token=False))
        for text in (*CORPUS, " \n a\r\n\r\n\t b ", "I'm 'S don’t ½ ١٢٣ e\u0301 \u00a0\u3000"):
            assert tokenizer.decode(tokenizer.encode(text)) == text


# token ids of SmolLM2's GGUF file as llama.cpp 0.3.36 (llama-cpp-python) gives them
SMOLLM2 = [
    ("Hello  world   !", [19556, 216, 905, 256, 5728]),
    ("3.14159e-10 1,0", [35, 30, 33, 36, 33, 37, 41, 85, 29, 33, 32, 216, 33, 28, 32]),
    ("\U0001f468\u200d\U0001f469 family", [10813, 235, 118, 321, 231, 10813, 235, 119, 1564]),
    ("\u0627\u0644\u0639\u0631\u0628\u064a\u0629", [22208, 34966, 20602, 31462, 23339, 43463]),
    ("\u2028\u2029\x85", [321, 118, 321, 119, 141, 223]),
    ("<|im_start|>user\nhi<|im_end|>\n", [1, 4093, 198, 6004, 2, 198]),
    ("<|im_start|", [44, 108, 306, 79, 3738, 108]),
    (
        "I'm you're he'll don't I'M YOU'RE",
        [57, 5248, 346, 2316, 384, 3060, 1326, 982, 339, 23, 61, 12246, 23, 3256],
    ),
    (
        "def f(x):\n    return x**2\n\n\n\tif",
        [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 16506, 197, 342],
    ),
    (" \n \n\n  x", [3717, 216, 8866, 1792]),
    ("\ufb01 ligature \u017f long s '\u017f", [27141, 13042, 906, 18811, 140, 986, 262, 637, 144, 140]),
    ("a\r\nb\r\n\r\nc", [81, 201, 198, 82, 7209, 198, 83]),
    ("\x00\x01\x02\x1f\x7f", [190, 191, 192, 215, 217]),
]


@pytest.mark.real_model
def test_token_ids_of_the_default_model(smollm2_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(GgufFile(smollm2_path).metadata)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (1, (2, 0), 49152)
    for text, ids in SMOLLM2:
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids, skip_special=False) == text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chat_template": 9}, "chat_template is 9; a text or null is needed"),
        ({"bos_token": 5}, "bos_token is 5; a token's text or null is needed"),
        ({"eos_token": {"content": []}}, "eos_token is"),
    ],
)
def test_settings_of_another_kind_are_damage(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    Tokenizer.from_gguf(byte_level_metadata()).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ModelFormatError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_a_tokenizer_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tokenizer.from_gguf(byte_level_metadata()).save(tmp_path)

    def forbidden(path: Path, **_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", forbidden)
    with pytest.raises(SourceError, match=r"cannot read .*: Permission denied"):
        Tokenizer.from_folder(tmp_path)
