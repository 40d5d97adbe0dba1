"""The packed file: a model's weights in bundles, as the engine reads them, ready to be mapped into memory.

Layout: `_MAGIC`, the length of the header (uint64, little endian), the header (JSON), then the sections, each
aligned to 64 bytes. The header names the version, the codec, how many leading bits lie apart (see
`dejavu.nested`), the configuration and the place of each section.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.codecs import CODECS, Codec
from dejavu.engine.layout import offsets, sections
from dejavu.engine.packing import pack_sections
from dejavu.errors import CacheError, DejavuError
from dejavu.models.config import ModelConfig
from dejavu.models.progress import NoProgress
from dejavu.models.store import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.engine.packing import Put
    from dejavu.models.progress import Progress
    from dejavu.models.weights import Weights

VERSION = 11
"""Of the bundles' byte layout and of the header; a file of another version is packed again."""

_MAGIC = b"dejavu\x00p"
_MAX_HEADER = 64 << 20


@dataclass(frozen=True)
class Packed:
    """A packed model in memory or mapped from a file."""

    config: ModelConfig
    codec: Codec
    fingerprint: str
    """Of the weights that were packed."""
    places: dict[str, tuple[int, int]]
    """Section -> (offset, bytes) in `buffer`."""
    buffer: NDArray[np.uint8]
    leading: int = 0
    """Bits that lie apart."""

    @property
    def nbytes(self) -> int:
        """Bytes of all sections."""
        return sum(size for _, size in self.places.values())


def read_packed(path: Path) -> Packed | None:
    """Map the file at `path`; None where there is none, or one of another version or not whole."""
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
            length = int.from_bytes(start[8:], "little")
            if start[:8] != _MAGIC or len(start) < 16 or length > _MAX_HEADER:
                return None
            header = json.loads(stream.read(length))
            if header["version"] != VERSION or header["codec"] not in CODECS:
                return None
            leading = int(header["leading"])
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        _in_huge_pages(mapped)
        if len(mapped) != header["bytes"]:
            return None
        config = ModelConfig.from_dict(header["config"])
        places = {str(name): (int(place[0]), int(place[1])) for name, place in header["sections"].items()}
        first = min(at for at, _ in places.values())
        expected = offsets(sections(config, header["codec"], leading=leading), first)
        if places != expected or max(at + size for at, size in places.values()) > len(mapped):
            return None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(
            f"{path}: {error.strerror or error}", fix="set DEJAVU_CACHE to a readable folder"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, DejavuError):
        return None  # damaged: packing again is always right
    buffer = np.frombuffer(mapped, np.uint8)
    return Packed(config, header["codec"], str(header["fingerprint"]), places, buffer, leading)


def write_packed(
    path: Path,
    config: ModelConfig,
    weights: Weights,
    codec: Codec,
    threads: int,
    progress: Progress | None = None,
    *,
    leading: int = 0,
) -> None:
    """Pack `weights` into the file at `path`, whole or not at all; memory stays at a few chunks.

    Raises:
        CacheError: the file cannot be written.
        InputError: rows of the codec cannot be cut behind `leading` bits.
        NumericsError: the weights hold NaN, infinity, or values that the codec cannot hold.
    """
    header, places, total = _header(config, weights.fingerprint, codec, leading)
    with atomic_write(path) as stream:

        def put(offset: int, data: NDArray[Any]) -> None:
            stream.seek(offset)
            stream.write(data.data)

        stream.write(header)
        stream.truncate(total)
        _pack(config, weights, codec, leading, places, put, threads, progress)
    _forget_pages(path)
    kind = path.stem.rpartition("-")[0]
    for outdated in path.parent.glob(f"{kind}-*.dejavu"):
        if outdated != path and outdated.stem.rpartition("-")[0] == kind:
            outdated.unlink(missing_ok=True)  # of an earlier state of the model's files, or of dejavu


def pack_in_memory(
    config: ModelConfig,
    weights: Weights,
    codec: Codec,
    threads: int,
    progress: Progress | None = None,
    *,
    leading: int = 0,
) -> Packed:
    """Pack `weights` into anonymous memory. Raises as `write_packed`, without `CacheError`."""
    _, places, total = _header(config, weights.fingerprint, codec, leading)
    buffer = anonymous(total)

    def put(offset: int, data: NDArray[Any]) -> None:
        buffer[offset : offset + data.nbytes] = data.view(np.uint8).reshape(-1)

    _pack(config, weights, codec, leading, places, put, threads, progress)
    return Packed(config, codec, weights.fingerprint, places, buffer, leading)


def anonymous(nbytes: int) -> NDArray[np.uint8]:
    """Zeroed memory in huge pages where the system has them."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    memory = mmap.mmap(-1, nbytes, **private)  # shared memory, which is the default, mostly has small pages
    _in_huge_pages(memory)
    return np.frombuffer(memory, np.uint8)


def _in_huge_pages(memory: mmap.mmap) -> None:
    """Ask for huge pages: of small ones, a page's address takes as long to find as a part of it to read."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # systems without them
            memory.madvise(mmap.MADV_HUGEPAGE)


def _forget_pages(path: Path) -> None:
    """Have a file that was written piece by piece read anew, as what `_in_huge_pages` asks for is heeded then."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError), path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _header(
    config: ModelConfig, fingerprint: str, codec: Codec, leading: int
) -> tuple[bytes, dict[str, tuple[int, int]], int]:
    """The file's first bytes, the places of the sections, and the size of the file."""
    wanted = sections(config, codec, leading=leading)
    start = 4096
    while True:
        places = offsets(wanted, start)
        total = max(offset + size for offset, size in places.values())
        values = {
            "version": VERSION,
            "codec": codec,
            "leading": leading,
            "fingerprint": fingerprint,
            "bytes": total,
            "config": config.to_dict(),
            "sections": places,
        }
        text = json.dumps(values).encode()
        if 16 + len(text) <= start:
            return _MAGIC + len(text).to_bytes(8, "little") + text, places, total
        start *= 2


def _pack(
    config: ModelConfig,
    weights: Weights,
    codec: Codec,
    leading: int,
    places: dict[str, tuple[int, int]],
    put: Put,
    threads: int,
    progress: Progress | None,
) -> None:
    wanted = sections(config, codec, leading=leading)
    progress = progress or NoProgress()
    progress.start(f"packing weights as {codec}", sum(section.nbytes for section in wanted))
    try:
        pack_sections(config, weights, wanted, places, put, threads, progress)
    finally:
        progress.finish()
