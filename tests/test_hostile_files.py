"""Mutated and truncated model files: they load, or raise one of dejavu's errors. Nothing else."""

from __future__ import annotations

import contextlib
import json
import resource
import struct
import time
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
import safetensors.numpy
from gguf.constants import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dejavu.engine import NativeExecutor
from dejavu.engine.packed import pack_in_memory
from dejavu.errors import DejavuError
from dejavu.models.gguf import GgufFile
from dejavu.models.gguf_writer import write_gguf
from dejavu.models.loading import open_model
from dejavu.models.safetensors import INDEX_NAME, SafeTensors
from tiny_chat import build_tiny_chat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dejavu.codecs import Codec
    from dejavu.models.weights import RawTensors

RNG = np.random.default_rng(0)
MANY = settings(
    deadline=None,
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
_SLOWEST = 2.0  # seconds for a file of a few kilobytes

# Values that break careless parsers, as little-endian bytes of several widths.
NASTY = [
    struct.pack(code, value)
    for code, values in {
        "<B": (0, 1, 0x7F, 0x80, 0xFF),
        "<I": (0, 1, 9, 2**31 - 1, 2**31, 2**32 - 1),
        "<Q": (0, 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 32),
    }.items()
    for value in values
]


@pytest.fixture(autouse=True, scope="module")
def limited_memory() -> Iterator[None]:
    """Any allocation by a claimed count fails at once: 4 GB of address space beyond what is in use."""
    with open("/proc/self/statm") as stream:  # noqa: PTH123
        used = int(stream.read().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small sound files."""
    folder = tmp_path_factory.mktemp("samples")
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_float32("llama.epsilon", 1e-5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "Ġa", "🙂", ""])
    writer.add_array("tokenizer.ggml.token_type", [1, 2, 3, 1])
    writer.add_array("flags", [True, False])
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    writer.add_tensor("norm", RNG.normal(size=32).astype(np.float32))
    writer.add_tensor("half", RNG.normal(size=(3, 7)).astype(np.float16))
    for kind, block_bytes, n in ((Type.Q8_0, 34, 2), (Type.Q6_K, 210, 1)):
        stored = RNG.integers(0, 256, (2, n * block_bytes), dtype=np.uint8)
        writer.add_tensor(kind.name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = {
        "a": RNG.normal(size=(3, 5)).astype(np.float32),
        "b": np.zeros(4, np.float16),
        "c": np.ones((2, 2), np.int8),
    }
    shard = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    weight_map = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    return {
        "gguf": (folder / "m.gguf").read_bytes(),
        "safetensors": shard,
        "index": json.dumps({"metadata": {"total_size": 72}, "weight_map": weight_map}).encode(),
    }


def read_all(tensors: RawTensors) -> None:
    for name in tensors.names():
        try:
            whole = tensors.read_rows(name)
        except DejavuError:
            continue
        assert whole.dtype == np.float32
        assert whole.shape == tensors.shape(name)
        rows = np.arange(len(whole))[::-1]
        np.testing.assert_array_equal(tensors.read_rows(name, rows), whole[rows])
        if whole.ndim == 2:
            cols = slice(whole.shape[1] // 2, None)
            np.testing.assert_array_equal(tensors.read_rows(name, slice(0, 1), cols), whole[:1, cols])
    assert len(tensors.fingerprint) == 64
    tensors.release()
    tensors.close()


def open_gguf(folder: Path, content: bytes) -> None:
    path = folder / "m.gguf"
    path.write_bytes(content)
    file = GgufFile(path)
    assert all(isinstance(key, str) for key in file.metadata)
    read_all(file.tensors)


def open_safetensors(folder: Path, content: bytes) -> None:
    path = folder / "m.safetensors"
    path.write_bytes(content)
    read_all(SafeTensors(path))


def survives(load: Callable[[Path, bytes], None], folder: Path, content: bytes) -> bool:
    """Load it; whether it was accepted. Any error but dejavu's fails the test."""
    start = time.process_time()
    message = ""
    try:
        load(folder, content)
    except DejavuError as error:
        message = str(error)
    assert time.process_time() - start < _SLOWEST
    assert not message or str(folder) in message
    return not message


@st.composite
def mutations(draw: st.DrawFn, whole: bytes) -> bytes:
    """The sample with a few bytes replaced, inserted, removed or repeated, or cut."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        # Most in the first part, where the header is.
        at = draw(st.one_of(st.integers(0, min(len(content), 700)), st.integers(0, len(content))))
        what = draw(st.sampled_from(["replace", "replace", "flip", "insert", "remove", "repeat", "cut"]))
        new = draw(st.one_of(st.sampled_from(NASTY), st.binary(min_size=1, max_size=9)))
        if what == "replace":
            content[at : at + len(new)] = new
        elif what == "flip" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "insert":
            content[at:at] = new
        elif what == "remove":
            del content[at : at + len(new)]
        elif what == "repeat":
            content[at:at] = content[at : at + 64]
        elif what == "cut":
            del content[at:]
    return bytes(content)


@MANY
@given(data=st.data())
def test_mutated_gguf(tmp_path: Path, samples: dict[str, bytes], data: st.DataObject) -> None:
    survives(open_gguf, tmp_path, data.draw(mutations(samples["gguf"])))


@MANY
@given(data=st.data())
def test_mutated_safetensors(tmp_path: Path, samples: dict[str, bytes], data: st.DataObject) -> None:
    content = data.draw(mutations(samples["safetensors"]))
    if data.draw(st.booleans()):  # a right length, so that the JSON itself is reached
        text = content[8 : content.rfind(b"}", 0, 600) + 1]
        content = len(text).to_bytes(8, "little") + text + samples["safetensors"][-72:]
    survives(open_safetensors, tmp_path, content)


@MANY
@given(data=st.data())
def test_mutated_index(tmp_path: Path, samples: dict[str, bytes], data: st.DataObject) -> None:
    def load(folder: Path, content: bytes) -> None:
        (folder / INDEX_NAME).write_bytes(content)
        (folder / "model-00001-of-00001.safetensors").write_bytes(samples["safetensors"])
        read_all(SafeTensors(folder))

    survives(load, tmp_path, data.draw(mutations(samples["index"])))


ODD = [0, 1, -1, 3, 7, 2**31 - 1, 2**31, 2**63, 10**40, 0.5, 1e-40, 1e300, -0.0]
ODD += [None, True, "", "gelu", "llama", [], [1], {}, {"rope_type": "linear", "factor": 0}]  # type: ignore[list-item]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a tiny model that runs, and the same as GGUF."""
    folder = build_tiny_chat(tmp_path_factory.mktemp("sound") / "model", context=64)
    model = open_model(folder)
    write_gguf(folder.parent / "m.gguf", model.config, model.weights.read, {}, codec="q8_0")
    model.close()
    return {
        "config.json": (folder / "config.json").read_bytes(),
        "model.safetensors": (folder / "model.safetensors").read_bytes(),
        "m.gguf": (folder.parent / "m.gguf").read_bytes(),
    }


@st.composite
def patched(draw: st.DrawFn, whole: bytes) -> bytes:
    """The sample with a few bytes replaced, as long as before: what is said changes, and most of the files open."""
    content = bytearray(whole)
    first, last = draw(st.sampled_from([(0, 3000), (3000, len(content) - 9)]))  # the header, or the weights
    for _ in range(draw(st.integers(1, 3))):
        new = draw(st.one_of(st.sampled_from(NASTY), st.binary(min_size=1, max_size=4)))
        at = draw(st.integers(first, last))
        content[at : at + len(new)] = new
    return bytes(content)


@st.composite
def odd_configs(draw: st.DrawFn, whole: bytes) -> bytes:
    """Some values of a config.json are others, or missing."""
    config = json.loads(whole)
    known = [
        *config,
        "head_dim",
        "rope_scaling",
        "rope_parameters",
        "attention_bias",
        "sliding_window",
        "dtype",
    ]
    for key in draw(st.lists(st.sampled_from(known), min_size=1, max_size=2)):
        if draw(st.booleans()) or key not in config:
            config[key] = draw(st.sampled_from(ODD))
        elif isinstance(config[key], int) and draw(st.booleans()):
            config[key] += draw(st.integers(-2, 40))
        else:
            del config[key]
    return json.dumps(config).encode()


def run_natively(path: Path, codec: Codec, leading: int) -> None:
    """Pack and run it; logits of any value may come out."""
    model = open_model(path)
    try:
        packed = pack_in_memory(model.config, model.weights, codec, 1, leading=leading)
        native = NativeExecutor(packed, kv_dtype="f32", threads=1)
        vocab, tokens = native.config.vocab_size, np.zeros(3, np.int32)
        cache = native.new_cache()
        assert native.prefill(tokens, cache).shape == (1, vocab)
        assert native.decode(tokens[:1], [cache]).shape == (1, vocab)
        native.close()
    finally:
        model.close()


@settings(MANY, max_examples=120)
@given(data=st.data())
def test_mutated_models_run_or_are_refused(
    tmp_path: Path, sound: dict[str, bytes], data: st.DataObject
) -> None:
    """What the files say reaches the engine's configuration and its packed weights."""
    name = data.draw(st.sampled_from(["config.json", *sound]))
    change = data.draw(st.sampled_from([mutations, odd_configs if name == "config.json" else patched]))
    path = tmp_path
    for other in ("config.json", "model.safetensors"):
        (tmp_path / other).write_bytes(sound[other])
    (tmp_path / name).write_bytes(data.draw(change(sound[name])))
    if name == "m.gguf":
        path = tmp_path / name
    codec, leading = data.draw(
        st.sampled_from([("f32", 0), ("int8", 0), ("int8", 4), ("int4", 0), ("int4", 4)])
    )
    with np.errstate(all="ignore"), contextlib.suppress(DejavuError):
        run_natively(path, codec, leading)


@pytest.mark.parametrize(("sample", "load"), [("gguf", open_gguf), ("safetensors", open_safetensors)])
def test_every_byte_of_the_header(
    tmp_path: Path, samples: dict[str, bytes], sample: str, load: Callable[[Path, bytes], None]
) -> None:
    """Each byte of the header in turn becomes 0, 255 and another bit pattern."""
    whole = samples[sample]
    assert survives(load, tmp_path, whole)
    accepted = 0
    end = min(len(whole), 900)
    for position in range(end):
        for value in {0x00, 0xFF, whole[position] ^ 0x10} - {whole[position]}:
            accepted += survives(load, tmp_path, whole[:position] + bytes([value]) + whole[position + 1 :])
    assert 0 < accepted < 3 * end


@pytest.mark.parametrize(("sample", "load"), [("gguf", open_gguf), ("safetensors", open_safetensors)])
def test_every_truncation(
    tmp_path: Path, samples: dict[str, bytes], sample: str, load: Callable[[Path, bytes], None]
) -> None:
    whole = samples[sample]
    trailing = len(whole) - len(whole.rstrip(b"\0")) + 32  # padding after the last tensor may be missing
    for length in range(len(whole)):
        accepted = survives(load, tmp_path, whole[:length])
        assert not accepted or (sample == "gguf" and length >= len(whole) - trailing)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"a": ' + b"1" * 1_000_000 + b"}",
        b'{"a": 1e999999}',
        b'{"a": {"dtype": "F32", "shape": [1e3], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [' + b"1," * 100_000 + b'1], "data_offsets": [0, 4]}}',
        b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": {"0": 1}, "data_offsets": [0, 4]}}',
        b'{"__metadata__": {"x": {}}}',
        b"\xef\xbb\xbf{}",
        b"null",
    ],
)
def test_odd_json(tmp_path: Path, text: bytes) -> None:
    header = len(text).to_bytes(8, "little") + text + bytes(4)
    survives(open_safetensors, tmp_path, header)
    (tmp_path / INDEX_NAME).write_bytes(text)
    with pytest.raises(DejavuError):
        SafeTensors(tmp_path)
