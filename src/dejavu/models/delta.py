"""Deltas: an adapted model as its base and 1.85 bits per weight.

A folder with ``delta.json`` (the base's name and fingerprint) and ``delta.safetensors``. Each matrix of a layer is

    base + trit * scale,   trit in {-1, 0, 1} per weight, scale float16 per group of 64 weights of a row.

The trits and the scale of a group are the best ones in least squares: with its k largest differences as +-1 and their mean
size as the scale, what is left is sum(d^2) - (sum of the k sizes)^2 / k; that k is taken which leaves least. Of differences
that are distributed normally 19% of the energy is left (Max 1960, three levels), and 36% by signs alone (BitDelta, Liu et
al. 2024). All other tensors are the base's. `NAME.trits`: uint8 [rows, columns / 5], five trits, each plus one, as digits
to the base 3, the first one the lowest; `NAME.scales`: float16 [rows, columns / 64]; both rounded up.

A folder with a ``delta.json`` alone, which has a ``share`` and another delta as its base, goes only that share of the way:
base + share * trit * scale. On text that is unlike what an adapted model has learned from, the middle of the way is often
better than either end (WiSE-FT, Wortsman et al., CVPR 2022).
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.errors import InputError, ModelFormatError
from dejavu.models.changed import ChangedWeights
from dejavu.models.progress import NoProgress
from dejavu.models.safetensors import SafeTensors
from dejavu.models.safetensors_writer import write_safetensors
from dejavu.models.spec import FETCH_AGAIN
from dejavu.models.staged_folder import staged_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from dejavu.models.progress import Progress
    from dejavu.models.weights import Weights

DELTA_NAME = "delta.json"
ARRAYS_NAME = "delta.safetensors"
SCHEMA = 2
GROUP = 64
"""Weights that share a scale."""
_PER_BYTE = 5
_POWERS = 3 ** np.arange(_PER_BYTE)
_TRITS = (np.arange(3**_PER_BYTE)[:, None] // _POWERS % 3 - 1).astype(np.int8)
"""The five trits of each byte."""


def write_delta(
    target: Path,
    base: Weights,
    adapted: Weights,
    *,
    name: str,
    read: Callable[[str], NDArray[np.float32]] | None = None,
    add_files: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write what makes `adapted` of `base` to the folder `target`, whole or not at all.

    Args:
        target: the folder to make.
        base: the original.
        adapted: the same model with other matrices in its layers.
        name: of the base, as `sources.resolve` takes it, on any machine.
        read: gives a tensor of `adapted`, or what will do as well; None: its own `read`.
        add_files: writes further files into the folder that it is given, where the delta is complete by then.
        progress: told of the weights compared.

    Raises:
        InputError: `target` exists, the tensors are not those of `base`, or others than the layers' matrices differ.
        CacheError: the disk is full, or the folder cannot be written.
    """
    if target.exists():
        raise InputError(f"{target} exists", fix="give another place")
    if set(base.names()) != set(adapted.names()) or any(
        base.shape(n) != adapted.shape(n) for n in base.names()
    ):
        raise InputError("the two models do not have the same tensors", fix="give the model that was adapted")
    progress = progress or NoProgress()
    progress.start("comparing weights", sum(int(np.prod(base.shape(n))) for n in base.names()))
    arrays: dict[str, NDArray[Any]] = {}
    try:
        for tensor in base.names():
            difference = (read or adapted.read)(tensor) - base.read(tensor)
            if _in_delta(tensor, difference.shape):
                arrays[f"{tensor}.trits"], arrays[f"{tensor}.scales"] = encode(difference)
            elif np.abs(difference).max(initial=0) > 1e-3 * np.abs(base.read(tensor)).max(initial=0):
                raise InputError(
                    f"{tensor} differs; a delta holds the layers' matrices alone",
                    fix="convert the model as a whole: --format safetensors",
                )
            progress.advance(difference.size)
            for weights in (base, adapted):
                weights.release()
    finally:
        progress.finish()
    with staged_folder(target) as folder:
        _write_record(folder, {"base": name, "fingerprint": base.fingerprint})
        with (folder / ARRAYS_NAME).open("wb") as stream:
            write_safetensors(stream, arrays)
        if add_files is not None:
            add_files(folder)


def write_share(target: Path, delta: Weights, share: float, *, name: str) -> None:
    """Write to the folder `target`, whole or not at all, what goes only a share of the way that a delta goes.

    Args:
        target: the folder to make.
        delta: the weights of the delta.
        share: of the way, within (0, 1].
        name: of the delta, as `sources.resolve` takes it, on any machine.

    Raises:
        InputError: `target` exists, `delta` is none, or no such share exists.
        CacheError: the disk is full, or the folder cannot be written.
    """
    if not isinstance(delta, DeltaWeights):
        raise InputError(
            f"{name} is not a delta, and has no way to go a share of",
            fix="make one of it: dejavu convert MODEL --format delta --base BASE -o DELTA",
        )
    if not 0 < share <= 1:
        raise InputError(
            f"a share of {share}", fix="give one above 0 (the base) and up to 1 (all of the delta)"
        )
    if target.exists():
        raise InputError(f"{target} exists", fix="give another place")
    with staged_folder(target) as folder:
        _write_record(folder, {"base": name, "fingerprint": delta.fingerprint, "share": share})


def _write_record(folder: Path, values: dict[str, Any]) -> None:
    text = json.dumps({"schema": SCHEMA, **values}, indent=1) + "\n"
    (folder / DELTA_NAME).write_text(text, encoding="utf-8")


def encode(difference: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Trits and scales of a difference [rows, columns]; see the module."""
    rows, columns = difference.shape
    groups = -(-columns // GROUP)
    padded = np.zeros((rows, groups * GROUP), np.float32)
    padded[:, :columns] = difference
    sizes = np.abs(padded).reshape(rows, groups, GROUP)
    ordered = -np.sort(-sizes, axis=2)
    sums = np.cumsum(ordered, axis=2)
    counts = np.arange(1, GROUP + 1, dtype=np.float32)
    best = np.argmax(sums**2 / counts, axis=2)[:, :, None]  # one less than how many are kept
    scales = np.take_along_axis(sums / counts, best, axis=2)
    kept = sizes >= np.take_along_axis(ordered, best, axis=2)
    trits = (np.sign(padded) * kept.reshape(padded.shape)).astype(np.int8)[:, :columns]
    digits = np.ones((rows, -(-columns // _PER_BYTE) * _PER_BYTE), np.uint8)
    digits[:, :columns] = trits + 1
    codes = (digits.reshape(rows, -1, _PER_BYTE) @ _POWERS).astype(np.uint8)
    return codes, scales[:, :, 0].astype(np.float16)


def decode(
    codes: NDArray[np.uint8], scales: NDArray[np.float16], start: int, stop: int
) -> NDArray[np.float32]:
    """Columns `start` to `stop` of the difference that `encode` kept: [rows, stop - start].

    Raises:
        ModelFormatError: a byte is no five trits.
    """
    found = codes[:, start // _PER_BYTE : -(-stop // _PER_BYTE)]
    if found.size and found.max() >= len(_TRITS):
        raise ModelFormatError(f"a byte of a delta is {found.max()}; five trits are less than {len(_TRITS)}")
    trits = _TRITS[found].reshape(len(codes), -1)[:, start % _PER_BYTE :][:, : stop - start]
    spread = np.repeat(scales[:, start // GROUP : -(-stop // GROUP)].astype(np.float32), GROUP, axis=1)
    return trits * spread[:, start % GROUP :][:, : stop - start]


class DeltaWeights(ChangedWeights):
    """`Weights` of a base and the delta in a folder.

    Args:
        base: the original; `close` closes it.
        folder: where the delta lies.
        record: its `delta.json`.

    Raises:
        ModelFormatError: the delta is for other weights, or its arrays do not fit them.
    """

    def __init__(self, base: Weights, folder: Path, record: dict[str, Any]) -> None:
        _check_base(base, folder, record)
        self._share = 1.0
        self._delta = SafeTensors(folder / ARRAYS_NAME)
        super().__init__(base, self._delta)
        try:
            self._check(folder)
        except BaseException:
            self._delta.close()
            raise

    def _check(self, folder: Path) -> None:
        wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name in self._base.names():
            shape = self._base.shape(name)
            if _in_delta(name, shape):
                wanted[f"{name}.trits"] = ("U8", (shape[0], -(-shape[1] // _PER_BYTE)))
                wanted[f"{name}.scales"] = ("F16", (shape[0], -(-shape[1] // GROUP)))
        found = {
            name: (self._delta.dtype_name(name), self._delta.shape(name)) for name in self._delta.names()
        }
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise ModelFormatError(
                    f"{folder / ARRAYS_NAME}: {name} is {found.get(name)}; {wanted.get(name)} is needed"
                )

    def part_way(self, folder: Path, record: dict[str, Any]) -> DeltaWeights:
        """The weights that go a share of the way, as the `delta.json` in `folder` says; closing either closes both.

        Raises:
            ModelFormatError: the share is of another delta.
        """
        _check_base(self, folder, record)
        found = copy.copy(self)
        found._share = self._share * record["share"]
        return found

    @property
    def fingerprint(self) -> str:
        """Of both, and of the share."""
        both = f"{self._base.fingerprint}+{self._delta.fingerprint}"
        if self._share != 1:
            both += f"*{self._share!r}"
        return hashlib.sha256(both.encode()).hexdigest()

    def changes(self, name: str) -> bool:
        """Matrices of layers."""
        return _in_delta(name, self.shape(name))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """See `Weights.read`."""
        values = self._base.read(name, start, stop)
        if not self.changes(name):
            return values
        trits, scales = self._arrays(name)
        return values + self._scaled(decode(trits[start:stop], scales[start:stop], 0, self.shape(name)[1]))

    def read_columns(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """See `Weights.read_columns`."""
        values = self._base.read_columns(name, start, stop)
        if not self.changes(name):
            return values
        trits, scales = self._arrays(name)
        return values + self._scaled(decode(trits, scales, start, stop))

    def _scaled(self, difference: NDArray[np.float32]) -> NDArray[np.float32]:
        return difference if self._share == 1 else np.float32(self._share) * difference

    def _arrays(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        return self._delta.read(f"{name}.trits"), self._delta.read(f"{name}.scales")


def check_record(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """`delta.json`, checked. Raises `ModelFormatError`."""
    place = folder / DELTA_NAME
    if set(values) - {"share"} != {"schema", "base", "fingerprint"} or values["schema"] != SCHEMA:
        raise ModelFormatError(f"{place} is not of schema {SCHEMA}", fix="update dejavu")
    if not all(
        isinstance(values[name], str) and len(values[name]) < 1000 for name in ("base", "fingerprint")
    ):
        raise ModelFormatError(f"{place}: base and fingerprint are not texts")
    share = values.get("share", 1.0)
    if type(share) not in (int, float) or not 0 < share <= 1:
        raise ModelFormatError(f"{place}: the share is {share!r}; a number above 0 and up to 1 is needed")
    return values


def _check_base(base: Weights, folder: Path, record: dict[str, Any]) -> None:
    if base.fingerprint != record["fingerprint"]:
        raise ModelFormatError(
            f"{folder} is for other weights than those of {record['base']}",
            fix=f"{FETCH_AGAIN}, and its base: a delta fits the very file that it was made of",
        )


def _in_delta(name: str, shape: tuple[int, ...]) -> bool:
    return name.startswith("layers.") and len(shape) == 2
