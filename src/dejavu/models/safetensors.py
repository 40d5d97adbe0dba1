"""Safetensors files, single or sharded, as `RawTensors`: headers are checked before anything is read.

The format: a little-endian u64 n, n bytes of JSON (name -> dtype, shape, data_offsets), then the data. The
`safetensors` library cannot hand bf16 to NumPy without torch, hence this reader.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from dejavu.errors import DejavuError, ModelFormatError, SourceError, UnsupportedModelError
from dejavu.models.mapped import FLOAT_BYTES, MappedFile, fingerprint, read_floats
from dejavu.models.spec import FETCH_AGAIN

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from dejavu.models.weights import Rows

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_DTYPE_BYTES = FLOAT_BYTES | {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    "U16": 2,
    "I16": 2,
    "U32": 4,
    "I32": 4,
    "U64": 8,
    "I64": 8,
}
_NUMPY_TYPES = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I32": "<i4", "I64": "<i8"}
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_MAX_INDEX = 100_000_000
_MAX_SHARDS = 1024
_MAX_RANK = 8


@dataclass(frozen=True)
class _Info:
    dtype: str
    shape: tuple[int, ...]
    offset: int  # in bytes from the start of the file
    nbytes: int


class _Shard:
    """One mapped file with its checked header."""

    def __init__(self, path: Path) -> None:
        self.file = MappedFile(path)
        try:
            self.header_bytes, self.infos, self.metadata = _parse_header(self.file)
        except BaseException:
            self.file.close()
            raise


class SafeTensors:
    """`RawTensors` of a safetensors file or of all shards of an index.

    Args:
        path: a ``.safetensors`` file, an index (``*.safetensors.index.json``), or a folder that holds
            ``model.safetensors`` or ``model.safetensors.index.json``.

    Raises:
        SourceError: a file is missing or unreadable.
        ModelFormatError: a header or the index is damaged, hostile or contradicts the files.
        UnsupportedModelError: a tensor has an unknown dtype.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shards: list[_Shard] = []
        self._where: dict[str, _Shard] = {}
        self._open = True
        try:
            chosen = _choose(path)
            if chosen.name.endswith(".json"):
                self._open_index(chosen)
            else:
                shard = _Shard(chosen)
                self._shards.append(shard)
                self._where = dict.fromkeys(shard.infos, shard)
        except BaseException:
            self.close()
            raise

    def _open_index(self, index: Path) -> None:
        weight_map = _read_index(index)
        shards: dict[str, _Shard] = {}
        for file_name in dict.fromkeys(weight_map.values()):
            try:
                shard = _Shard(index.parent / file_name)
            except SourceError as error:
                raise SourceError(
                    f"{index}: shard {file_name!r} cannot be opened ({error.args[0]})",
                    fix=FETCH_AGAIN,
                ) from error
            shards[file_name] = shard
            self._shards.append(shard)
        for name, file_name in weight_map.items():
            if name not in shards[file_name].infos:
                raise ModelFormatError(
                    f"{index}: says that {file_name!r} holds tensor {name!r}, but it does not",
                    fix=FETCH_AGAIN,
                )
            self._where[name] = shards[file_name]

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 over the shards in the order of the index; see `mapped.fingerprint`."""
        self._check_open()
        return fingerprint(
            (s.file, s.header_bytes, [(i.offset, i.nbytes) for i in s.infos.values()]) for s in self._shards
        )

    @property
    def metadata(self) -> dict[str, str]:
        """What the header of the file, or of the first shard, says beside the tensors."""
        return dict(self._shards[0].metadata)

    def names(self) -> Collection[str]:
        """Names of all tensors."""
        return self._where.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape, slowest axis first. Raises `KeyError` for an unknown name."""
        return self._where[name].infos[name].shape

    def dtype_name(self, name: str) -> str:
        """Dtype as safetensors calls it."""
        return self._where[name].infos[name].dtype

    def read_rows(self, name: str, rows: Rows = None, cols: slice | None = None) -> NDArray[np.float32]:
        """Rows and columns as fresh C-contiguous float32; see `RawTensors`.

        Raises:
            UnsupportedModelError: the dtype is not a plain float, or the tensor is neither 1-D nor 2-D.
        """
        self._check_open()
        shard = self._where[name]
        info = shard.infos[name]
        if info.dtype not in FLOAT_BYTES or len(info.shape) not in (1, 2):
            raise UnsupportedModelError(
                f"{shard.file.path}: tensor {name!r} is {info.dtype} {list(info.shape)}; "
                f"1-D and 2-D tensors of {', '.join(FLOAT_BYTES)} are supported"
            )
        return read_floats(shard.file, info.offset, info.shape, info.dtype, rows, cols)

    def read(self, name: str) -> NDArray[Any]:
        """The whole tensor, of any rank, as a fresh array of its own dtype.

        Raises:
            UnsupportedModelError: the dtype is none of F32, F16, I8, U8, I32 and I64.
        """
        self._check_open()
        shard = self._where[name]
        info = shard.infos[name]
        if info.dtype not in _NUMPY_TYPES:
            raise UnsupportedModelError(
                f"{shard.file.path}: tensor {name!r} is {info.dtype}; supported: {', '.join(_NUMPY_TYPES)}"
            )
        dtype = _NUMPY_TYPES[info.dtype]
        if not info.nbytes:
            return np.empty(info.shape, dtype)
        return np.array(shard.file.array(info.offset, info.shape, dtype))

    def release(self) -> None:
        """Drop the mapped pages from the resident set."""
        for shard in self._shards:
            shard.file.release()

    def close(self) -> None:
        """Unmap all shards."""
        self._open = False
        for shard in self._shards:
            shard.file.close()

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError(f"{self.path} was closed")


def _choose(path: Path) -> Path:
    """The file to open: `path` itself, or the single file or index inside the folder `path`."""
    if not path.is_dir():
        return path
    for name in (SINGLE_NAME, INDEX_NAME):
        if (path / name).exists():
            return path / name
    pickles = sorted(p.name for p in path.glob("pytorch_model*.bin"))
    if pickles:
        raise ModelFormatError(
            f"{path} holds {pickles[0]} but no safetensors; pickled weights are never loaded",
            fix="convert them: AutoModel.from_pretrained(...).save_pretrained(..., safe_serialization=True)",
        )
    raise SourceError(
        f"{path} holds neither {SINGLE_NAME} nor {INDEX_NAME}", fix="give the folder of a model"
    )


def load_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object, refusing duplicate keys, NaN and absurd numbers. A byte order mark before it is left out.

    Raises:
        ModelFormatError: it is none; `where` names it.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise ValueError("duplicate keys")
        return result

    def refuse(text: str) -> NoReturn:
        raise ValueError(f"number {text[:32]}")

    def integer(text: str) -> int:
        if len(text) > 20:
            refuse(text)
        return int(text)

    try:
        value = json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=pairs, parse_int=integer, parse_constant=refuse
        )
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{where}: not valid JSON ({error})", fix=FETCH_AGAIN) from error
    if not isinstance(value, dict):
        raise ModelFormatError(f"{where}: a JSON object is needed, found {type(value).__name__}")
    return value


def _read_index(index: Path) -> dict[str, str]:
    """The index's tensor name -> shard file name, checked."""
    try:
        with index.open("rb") as stream:
            data = stream.read(_MAX_INDEX + 1)
    except OSError as error:
        raise SourceError(f"cannot read {index}: {error.strerror}", fix="check the path") from error
    if len(data) > _MAX_INDEX:
        raise ModelFormatError(f"{index}: more than {_MAX_INDEX} bytes")
    weight_map = load_json(data, str(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFormatError(f"{index}: 'weight_map' (tensor name -> shard) is missing or empty")
    for name, file_name in weight_map.items():
        # A plain name only: no folders, so nothing outside the model's folder can be named.
        if (
            not isinstance(file_name, str)
            or Path(file_name).name != file_name
            or not file_name.endswith(".safetensors")
            or not file_name.isprintable()
        ):
            raise ModelFormatError(
                f"{index}: shard of {name!r} is {file_name!r}; a .safetensors file beside the index is needed"
            )
    if len(set(weight_map.values())) > _MAX_SHARDS:
        raise ModelFormatError(f"{index}: more than {_MAX_SHARDS} shards")
    return weight_map


def _parse_header(file: MappedFile) -> tuple[int, dict[str, _Info], dict[str, str]]:
    """Header length (with its own 8 bytes), tensors and metadata, every claim checked against the file's size."""

    def bad(what: str) -> DejavuError:
        return ModelFormatError(f"{file.path}: {what}", fix=FETCH_AGAIN)

    if file.size < 8:
        raise bad(f"{file.size} bytes; a safetensors file has at least 8")
    length = int.from_bytes(file.map[:8], "little")
    if length > min(_MAX_HEADER, file.size - 8):
        raise bad(f"offset 0: header of {length} bytes in a file of {file.size} (limit {_MAX_HEADER})")
    start = 8 + length
    header = load_json(file.map[8:start], f"{file.path}: header at offset 8")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise bad("__metadata__ must map strings to strings")

    infos: dict[str, _Info] = {}
    for name, entry in header.items():
        infos[name] = _parse_entry(name, entry, start, bad)
    end, last = start, "the header"
    for name, info in sorted(infos.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != end:
            kind = "overlaps" if info.offset < end else "leaves a gap after"
            raise bad(f"offset {info.offset}: tensor {name!r} {kind} {last}, which ends at {end}")
        end, last = info.offset + info.nbytes, f"tensor {name!r}"
    if end != file.size:
        raise bad(f"the tensors end at offset {end}, the file at {file.size}")
    return start, infos, metadata


def _parse_entry(name: str, entry: Any, start: int, bad: Any) -> _Info:
    """One tensor's entry; its offsets become offsets in the file."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad(f"tensor {name!r}: 'dtype', 'shape' and 'data_offsets' are needed, found {str(entry)[:80]}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise UnsupportedModelError(
            f"{bad('').args[0]}tensor {name!r} has dtype {dtype!r}; supported: {', '.join(_DTYPE_BYTES)}"
        )
    for what, values in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(values, list) or not all(type(v) is int and 0 <= v < 2**63 for v in values):
            raise bad(
                f"tensor {name!r}: {what} is {str(values)[:80]}; a list of non-negative integers is needed"
            )
    if len(offsets) != 2 or len(shape) > _MAX_RANK:
        raise bad(f"tensor {name!r}: shape {shape} with data_offsets {offsets}")
    nbytes = math.prod(shape) * _DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise bad(f"tensor {name!r}: {dtype} {shape} takes {nbytes} bytes, data_offsets are {offsets}")
    return _Info(dtype, tuple(shape), start + offsets[0], nbytes)
