"""Writing a model as a GGUF file (version 3). The gguf package quantises; header and placement are ours."""

from __future__ import annotations

import dataclasses
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from dejavu.errors import InputError, UnsupportedModelError
from dejavu.models import rope
from dejavu.models.config import RopeScaling
from dejavu.models.families import family_of_gguf
from dejavu.models.families.rotary import FREQ_FACTORS
from dejavu.models.gguf_header import TYPES
from dejavu.models.mapped import FLOAT_BYTES
from dejavu.models.progress import NoProgress
from dejavu.models.store import atomic_write
from dejavu.models.tensors import tensor_shapes
from dejavu.models.writing import as_floats, assemble, check_said, family_of, output_errors, whole_shape

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from dejavu.models.config import ModelConfig
    from dejavu.models.families.family import Layout
    from dejavu.models.gguf_header import MetadataValue
    from dejavu.models.progress import Progress
    from dejavu.models.weights import RawTensors, TensorView
    from dejavu.models.writing import Read

GgufCodec = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"]
_FILE_TYPES: dict[GgufCodec, int] = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "bf16": 32}
GGUF_CODECS: tuple[GgufCodec, ...] = tuple(_FILE_TYPES)
_NUMBERS = {name: (number, block, nbytes) for number, (name, block, nbytes) in TYPES.items()}
_ALIGNMENT = 32
_PIECE = 1 << 22  # weights quantised at once
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


def write_gguf(
    target: Path,
    config: ModelConfig,
    read: Read,
    metadata: Mapping[str, MetadataValue],
    *,
    codec: GgufCodec = "q8_0",
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a model to the file `target`, whole or not at all; one tensor at a time is in memory.

    Matrices are stored in `codec`; embedding and head in Q8_0 where that is of 4 bits, and matrices whose rows do not
    divide into blocks of 32 in F16. Norms and biases are F32.

    Args:
        target: the file to make.
        config: the model, without second copies of neurons.
        read: dejavu's name of a tensor -> its float32 values; each is read once.
        metadata: entries beside those of the architecture: ``tokenizer.*``, ``general.name``.
        codec: what matrices are stored in.
        force: replace a file that is there.
        progress: told of the bytes written.

    Raises:
        InputError: `target` exists and `force` is not given, or it is no file.
        UnsupportedModelError: GGUF, as dejavu reads it, cannot say what the model computes.
        NumericsError: a tensor holds NaN or infinity.
        CacheError: the disk is full, or the folder cannot be written.
    """
    if target.exists() and not (force and target.is_file()):
        raise InputError(f"{target} exists", fix="give another file, or --force to replace one")
    family = family_of(config)
    if family.config_to_gguf is None or family.gguf is None:
        raise UnsupportedModelError(
            f"{family.name} has no form in GGUF that dejavu reads", fix="convert it to safetensors"
        )
    config = _with_factors(config)
    arch, options = family.config_to_gguf(config)
    values: dict[str, object] = {"general.architecture": arch, **metadata}
    values |= {"general.file_type": _FILE_TYPES[codec], "general.quantization_version": 2}
    values |= {f"{arch}.{name}": value for name, value in options.items()}
    tensors = _plan(config, family.gguf, codec)
    _check_said(values, tensors, config)
    with output_errors(), atomic_write(target) as stream:
        _write(stream, values, tensors, config, read, progress or NoProgress())


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file."""

    type: str
    shape: tuple[int, ...]
    parts: Mapping[str, TensorView]
    """The model's tensors in it; none: the RoPE factors."""

    @property
    def nbytes(self) -> int:
        _, block, nbytes = _NUMBERS[self.type]
        return math.prod(self.shape) // block * nbytes


class _Planned:
    """What `config_from_gguf` asks of tensors, before they exist."""

    def __init__(self, tensors: Mapping[str, _Tensor], factors: tuple[float, ...]) -> None:
        self._tensors = tensors
        self._factors = factors

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read_rows(self, name: str) -> NDArray[np.float32]:
        assert name == FREQ_FACTORS  # noqa: S101  options depend on no other values
        return np.array(self._factors, np.float32)


def _with_factors(config: ModelConfig) -> ModelConfig:
    """Llama 3's scaling of RoPE as GGUF has it: divisors of the frequencies."""
    if config.rope_scaling.type != "llama3":
        return config
    plain = rope.frequencies(dataclasses.replace(config, rope_scaling=RopeScaling()))
    factors = tuple(float(factor) for factor in plain / rope.frequencies(config))
    return dataclasses.replace(config, rope_scaling=RopeScaling(freq_factors=factors))


def _plan(config: ModelConfig, layout: Layout, codec: GgufCodec) -> dict[str, _Tensor]:
    """All tensors of the file, in order."""
    shapes = tensor_shapes(config)
    tensors = {}
    factors = config.rope_scaling.freq_factors
    if factors:
        tensors[FREQ_FACTORS] = _Tensor("F32", (len(factors),), {})
    for source, parts in layout.sources_of(config).items():
        shape = whole_shape(parts, shapes)
        kind = codec.upper()
        if len(shape) == 1:
            kind = "F32"
        elif shape[-1] % _NUMBERS[kind][1]:
            kind = "F16"
        elif kind.startswith("Q4") and parts.keys() & {"embed.weight", "head.weight"}:
            kind = "Q8_0"
        tensors[source] = _Tensor(kind, shape, parts)
    return tensors


def _check_said(values: Mapping[str, object], tensors: Mapping[str, _Tensor], config: ModelConfig) -> None:
    read_back = family_of_gguf(values).config_from_gguf
    assert read_back is not None  # noqa: S101  families that are read have it
    planned = cast("RawTensors", _Planned(tensors, config.rope_scaling.freq_factors))
    found = read_back(values, planned)
    # What ends a text is the tokenizer's to say.
    bos, ends = config.bos_token_id, config.eos_token_ids
    check_said("a GGUF file", config, dataclasses.replace(found, bos_token_id=bos, eos_token_ids=ends))


def _write(
    stream: BinaryIO,
    values: Mapping[str, object],
    tensors: Mapping[str, _Tensor],
    config: ModelConfig,
    read: Read,
    progress: Progress,
) -> None:
    stream.write(_header(values, tensors))
    progress.start("writing weights", sum(tensor.nbytes for tensor in tensors.values()))
    try:
        for name, tensor in tensors.items():
            stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
            weights = (
                assemble(tensor.parts, tensor.shape, read)
                if tensor.parts
                else np.array(config.rope_scaling.freq_factors, np.float32)
            )
            rows = max(1, _PIECE // tensor.shape[-1])
            for start in range(0, len(weights), rows):
                data = _encode(weights[start : start + rows], tensor.type, name)
                stream.write(data)
                progress.advance(len(data))
        stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
    finally:
        progress.finish()


def _encode(rows: NDArray[np.float32], kind: str, name: str) -> bytes:
    if kind in FLOAT_BYTES:
        return as_floats(rows, kind, name).tobytes()
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(rows, GGMLQuantizationType[kind]).tobytes()


def _header(values: Mapping[str, object], tensors: Mapping[str, _Tensor]) -> bytes:
    """Everything before the data; see `gguf_header` for the layout."""
    values = {key: value for key, value in values.items() if value != []}  # an empty list has no type
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values))]
    for key, value in values.items():
        kind, data = _value(value)
        parts += [_string(key), struct.pack("<I", kind), data]
    offset = 0
    for name, tensor in tensors.items():
        dims = tensor.shape[::-1]
        parts += [_string(name), struct.pack(f"<I{len(dims)}Q", len(dims), *dims)]
        parts.append(struct.pack("<IQ", _NUMBERS[tensor.type][0], offset))
        offset += tensor.nbytes + -tensor.nbytes % _ALIGNMENT
    return b"".join(parts)


def _value(value: object) -> tuple[int, bytes]:
    """Type and bytes of a metadata value."""
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return (_UINT32, struct.pack("<I", value)) if value >= 0 else (_INT32, struct.pack("<i", value))
    if isinstance(value, float):
        return _FLOAT32, struct.pack("<f", value)
    if isinstance(value, str):
        return _STRING, _string(value)
    items = cast("list[bool | int | float | str]", value)
    if isinstance(items[0], int) and not isinstance(items[0], bool):
        kind, data = _INT32, [struct.pack(f"<{len(items)}i", *items)]
    else:
        kind, data = _value(items[0])[0], [_value(item)[1] for item in items]
    return _ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(data)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
