"""The header of a GGUF file (v2, v3): metadata and tensor infos, every claim checked against the file's size.

Layout, little-endian: magic, u32 version, u64 tensor count, u64 metadata count; per metadata entry a string
key, u32 type and value; per tensor a string name, u32 rank, u64 dims (fastest axis first), u32 type and a
u64 offset from the data section, which starts at the next multiple of `general.alignment`. A string is a u64
length and UTF-8 bytes; an array is a u32 type, a u64 count and its values.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from dejavu.errors import ModelFormatError, UnsupportedModelError
from dejavu.models.spec import FETCH_AGAIN

if TYPE_CHECKING:
    from dejavu.models.mapped import MappedFile

MetadataValue = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
"""Supported tensor types: number in the file -> name, entries per block, bytes per block."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 20
_MAX_NAME = 1 << 16
_MAX_STRING = 1 << 26  # chat templates are the longest; 64 MiB is far beyond any
_MAX_ARRAY_ENTRIES = 1 << 24  # over all arrays; a vocabulary of 256k tokens needs a million
_MAX_RANK = 4
_MIN_KEY_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class TensorInfo:
    """Where and how one tensor is stored."""

    type: str
    shape: tuple[int, ...]
    """Slowest axis first (the file lists dims the other way round)."""
    offset: int
    """In bytes from the start of the file."""
    nbytes: int
    block: int
    """Entries per block along the last axis; 1 for plain floats."""
    block_bytes: int


@dataclass(frozen=True)
class Header:
    """A checked header."""

    version: int
    metadata: dict[str, MetadataValue]
    infos: dict[str, TensorInfo]
    nbytes: int
    """Bytes before the data section."""


def parse_header(file: MappedFile) -> Header:
    """Parse and check the header of `file`.

    Raises:
        ModelFormatError: the file is truncated, damaged, hostile or of another format or version.
        UnsupportedModelError: a tensor has a type outside `TYPES`, or the file is one part of several.
    """
    return _Parser(file).parse()


class _Parser:
    """A cursor over the file that never reads or allocates beyond what the file holds."""

    def __init__(self, file: MappedFile) -> None:
        self.path = file.path
        self.data = file.map
        self.size = file.size
        self.pos = 0
        self.array_entries = 0

    def bad(self, what: str, at: int | None = None) -> NoReturn:
        offset = self.pos if at is None else at
        raise ModelFormatError(f"{self.path}: offset {offset}: {what}", fix=FETCH_AGAIN)

    def need(self, nbytes: int, what: str) -> None:
        if nbytes > self.size - self.pos:
            self.bad(f"{what} needs {nbytes} bytes, the file ends after {self.size - self.pos}")

    def scalar(self, code: str, what: str) -> int | float:
        size = struct.calcsize("<" + code)
        self.need(size, what)
        value: int | float = struct.unpack_from("<" + code, self.data, self.pos)[0]
        self.pos += size
        return value

    def integer(self, code: str, what: str) -> int:
        return int(self.scalar(code, what))

    def boolean(self, what: str) -> bool:
        value = self.integer("B", what)
        if value > 1:
            self.bad(f"{what} is {value}; a boolean is 0 or 1", self.pos - 1)
        return bool(value)

    def string(self, what: str, limit: int = _MAX_STRING) -> str:
        at = self.pos
        length = self.integer("Q", what)
        if length > limit:
            self.bad(f"{what} of {length} bytes (limit {limit})", at)
        self.need(length, what)
        raw = self.data[self.pos : self.pos + length]
        self.pos += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.bad(f"{what} is not UTF-8", at)

    def strings(self, count: int, what: str) -> list[str]:
        """An array's strings: a tight loop, for vocabularies have 10^5 entries."""
        data, size, unpack = self.data, self.size, struct.Struct("<Q").unpack_from
        result: list[str] = []
        append = result.append
        pos = self.pos
        try:
            for _ in range(count):
                start = pos + 8
                pos = start + unpack(data, pos)[0]
                if pos > size:
                    self.bad(f"string of {what} reaches past the end of the file ({size} bytes)", start - 8)
                append(data[start:pos].decode("utf-8"))
        except struct.error:
            self.bad(f"{what}: the file ends within string {len(result)} of {count}", pos)
        except UnicodeDecodeError:
            self.bad(f"string {len(result)} of {what} is not UTF-8", start - 8)
        self.pos = pos
        return result

    def booleans(self, count: int, what: str) -> list[bool]:
        raw = self.data[self.pos : self.pos + count]
        if raw.strip(b"\0\1"):
            self.bad(f"{what} holds a byte other than 0 and 1; a boolean is one of them")
        self.pos += count
        return [byte == 1 for byte in raw]

    def array(self, what: str) -> MetadataValue:
        kind = self.integer("I", what)
        at = self.pos
        count = self.integer("Q", what)
        if kind == _ARRAY:
            self.bad(
                f"{what} is an array of arrays; arrays of numbers, booleans and strings are supported", at - 4
            )
        if kind != _STRING and kind not in _SCALARS:
            self.bad(f"{what} is an array of unknown type {kind}", at - 4)
        width = 8 if kind == _STRING else struct.calcsize("<" + _SCALARS[kind])
        if count > (self.size - self.pos) // width:
            self.bad(f"{what} claims {count} entries, the file ends after {self.size - self.pos} bytes", at)
        self.array_entries += count
        if self.array_entries > _MAX_ARRAY_ENTRIES:
            self.bad(f"{what}: more than {_MAX_ARRAY_ENTRIES} array entries in all", at)
        if kind == _STRING:
            return self.strings(count, what)
        if kind == _BOOL:
            return self.booleans(count, what)
        values = list(struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.data, self.pos))
        self.pos += count * width
        return values

    def value(self, what: str) -> MetadataValue:
        kind = self.integer("I", what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what)
        if kind == _BOOL:
            return self.boolean(what)
        if kind not in _SCALARS:
            self.bad(f"{what} has unknown type {kind}", self.pos - 4)
        return self.scalar(_SCALARS[kind], what)

    def name(self, what: str, taken: dict[str, MetadataValue] | dict[str, TensorInfo]) -> str:
        at = self.pos
        name = self.string(what, _MAX_NAME)
        if not name:
            self.bad(f"{what} is empty", at)
        if name in taken:
            self.bad(f"{what} {name!r} occurs twice", at)
        return name

    def parse(self) -> Header:
        if self.size < 24 or self.data[:4] != b"GGUF":
            self.bad(f"not a GGUF file: it starts with {self.data[:4]!r} and has {self.size} bytes")
        self.pos = 4
        version = self.integer("I", "version")
        if version not in (2, 3):
            kind = "big-endian GGUF" if version >= 1 << 24 else f"GGUF version {version}"
            self.bad(f"{kind}; little-endian versions 2 and 3 are supported", 4)
        n_tensors = self.integer("Q", "tensor count")
        n_keys = self.integer("Q", "metadata count")
        for what, count, limit, least in (
            ("tensors", n_tensors, _MAX_TENSORS, _MIN_TENSOR_BYTES),
            ("metadata entries", n_keys, _MAX_KEYS, _MIN_KEY_BYTES),
        ):
            if count > min(limit, self.size // least):
                self.bad(f"{count} {what} in a file of {self.size} bytes (limit {limit})", 8)

        metadata: dict[str, MetadataValue] = {}
        for _ in range(n_keys):
            key = self.name("metadata key", metadata)
            metadata[key] = self.value(f"metadata {key!r}")
        parts = metadata.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise UnsupportedModelError(
                f"{self.path} is one of {parts} parts; single GGUF files are supported",
                fix="merge them: llama-gguf-split --merge FIRST_PART OUTPUT",
            )
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            self.bad(f"general.alignment is {str(alignment)[:40]}; a power of two is needed")

        infos: dict[str, TensorInfo] = {}
        for _ in range(n_tensors):
            name = self.name("tensor name", infos)
            infos[name] = self.info(name, alignment)
        start = -(-self.pos // alignment) * alignment
        return Header(version, metadata, self.place(infos, start), start)

    def info(self, name: str, alignment: int) -> TensorInfo:
        """One tensor's entry; its offset is still relative to the data section."""
        at = self.pos
        rank = self.integer("I", f"rank of {name!r}")
        if not 1 <= rank <= _MAX_RANK:
            self.bad(f"tensor {name!r} has {rank} dimensions; 1 to {_MAX_RANK} are supported", at)
        dims = [self.integer("Q", f"dims of {name!r}") for _ in range(rank)]
        number = self.integer("I", f"type of {name!r}")
        offset = self.integer("Q", f"offset of {name!r}")
        if number not in TYPES:
            self.refuse_type(name, number, at)
        type_name, block, block_bytes = TYPES[number]
        # Python integers do not overflow: a product beyond 2^64 is simply larger than the file.
        nbytes = math.prod(dims) // block * block_bytes
        if min(dims) < 1 or nbytes > self.size:
            self.bad(f"tensor {name!r} has dims {dims}: {nbytes} bytes in a file of {self.size}", at)
        if dims[0] % block:
            self.bad(f"tensor {name!r}: rows of {dims[0]} are not whole {type_name} blocks of {block}", at)
        if offset % alignment:
            self.bad(
                f"tensor {name!r}: data offset {offset} is not a multiple of the alignment {alignment}", at
            )
        return TensorInfo(type_name, tuple(reversed(dims)), offset, nbytes, block, block_bytes)

    def refuse_type(self, name: str, number: int, at: int) -> NoReturn:
        from gguf.constants import GGMLQuantizationType

        try:
            found = GGMLQuantizationType(number).name
        except ValueError:
            self.bad(f"tensor {name!r} has unknown type number {number}", at)
        supported = ", ".join(known for known, _, _ in TYPES.values())
        raise UnsupportedModelError(
            f"{self.path}: tensor {name!r} has type {found}; supported: {supported}",
            fix="take another quantisation of the model, for instance Q4_K_M, Q8_0 or BF16",
        )

    def place(self, infos: dict[str, TensorInfo], start: int) -> dict[str, TensorInfo]:
        """Offsets from the start of the file; no tensor may overlap another or the file's end."""
        end, last = 0, "the header"
        for name, info in sorted(infos.items(), key=lambda item: item[1].offset):
            if info.offset < end:
                self.bad(
                    f"tensor {name!r} overlaps {last}, which ends at offset {start + end}",
                    start + info.offset,
                )
            end, last = info.offset + info.nbytes, f"tensor {name!r}"
            if start + end > self.size:
                self.bad(f"{last} ends at offset {start + end}, the file at {self.size}", start + info.offset)
        return {
            name: TensorInfo(i.type, i.shape, start + i.offset, i.nbytes, i.block, i.block_bytes)
            for name, i in infos.items()
        }
