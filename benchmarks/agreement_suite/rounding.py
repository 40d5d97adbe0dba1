"""The NumPy reference with llama.cpp's rounding: inputs of products with quantised matrices in 8 bits.

llama.cpp rounds 32 neighbouring inputs x of such a product together (ggml's ``quantize_row_q8_0`` and
``quantize_row_q8_1``, as they are on x86-64): the codes are ``rint(x * (127 / max|x|))``, their scale is ``max|x| / 127``
in float16. Matrices with a minimum per group (Q4_1, Q5_1) multiply it with the sum of the group's inputs, which is the sum
of the codes times the scale as it was before its rounding, in float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from dejavu.models.families import family_of_gguf
from dejavu.models.gguf import GgufFile
from dejavu.models.loading import open_model
from dejavu.reference import ReferenceExecutor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[np.float32]

NEAR_CODE, NEAR_F16 = 0.01, 0.1
"""Steps from the border of two roundings within which a value counts as next to it: what relative differences of the inputs
by less than 1e-4 do to codes of up to 127 and to the 11 bits of a float16."""
_GROUP = 32
_WITH_MINIMUM = {"Q4_1": 20, "Q5_1": 24}  # bytes of a block: scale, minimum, codes
_PLAIN = {"Q4_0", "Q5_0", "Q8_0"}
_SAME_INPUT = {"k": "q", "v": "q", "up": "gate"}


class RoundingExecutor(ReferenceExecutor):
    """`ReferenceExecutor` of a GGUF file that rounds as llama.cpp does.

    Args:
        path: the file; quantised matrices have one of ggml's types with groups of 32.

    Attributes:
        watch: names in the file of the matrices whose inputs `follow` wants.
    """

    def __init__(self, path: Path) -> None:
        file, model = GgufFile(path), open_model(path)
        layout = family_of_gguf(file.metadata).gguf
        assert layout is not None  # for the type: the file was opened
        stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        self._minimums: dict[str, Array] = {}  # name -> [out, groups]
        self._sources: dict[str, str] = {}  # name -> the file's, of matrices with rounded inputs
        for name, view in layout.table(model.config, file.tensors).items():
            kind = file.tensors.dtype_name(view.source)
            matrix = (
                "head" if name == "embed.weight" and model.config.tied_head else name.removesuffix(".weight")
            )
            if kind == "F32":
                continue
            if kind not in _PLAIN | _WITH_MINIMUM.keys():
                raise SystemExit(f"{view.source} is {kind}: how llama.cpp rounds its inputs is not emulated")
            self._sources[matrix] = view.source
            if kind in _WITH_MINIMUM:
                minimums = _minimums(stored[view.source], _WITH_MINIMUM[kind])
                self._minimums[matrix] = minimums if view.rows is None else minimums[view.rows]
        file.close()
        super().__init__(model.config, model.weights)
        model.close()
        self.watch = [
            source for name, source in self._sources.items() if name.split(".")[-1] not in _SAME_INPUT
        ]
        self._rounded = self._taken = self._refused = 0
        self._farthest = {NEAR_CODE: 0.0, NEAR_F16: 0.0}
        self._theirs: Mapping[str, Array] | None = None
        self._stop = 0  # positions that have been run, this pass included
        self._read: Array | None = None  # what was rounded last, and its result

    def follow(self, inputs: Mapping[str, Array] | None) -> None:
        """Where a rounding is near a border, take llama.cpp's side from now on; None: no more.

        Args:
            inputs: what its products read, the file's names -> [positions, in].
        """
        self._theirs, self._read = inputs, None

    def roundings(self) -> dict[str, Any]:
        """What was rounded while following llama.cpp: codes, scales and sums.

        ``near_ties`` lay next to a border and were rounded as llama.cpp did, the farthest so many steps away;
        ``other_differences`` did not, and were left as they were.
        """
        return {
            "roundings": self._rounded,
            "near_ties": self._taken,
            "other_differences": self._refused,
            "farthest_code": self._farthest[NEAR_CODE],
            "farthest_float16": self._farthest[NEAR_F16],
        }

    def _forward(self, tokens: NDArray[np.int32], run: Any) -> Array:
        self._stop = run.cache.length + len(tokens)
        return super()._forward(tokens, run)

    def _linear(self, name: str, x: Array, *, bits: int | None = None) -> Array:
        if name not in self._sources:
            return super()._linear(name, x, bits=bits)
        rounded, missing = self._round(name, x)
        y = super()._linear(name, rounded, bits=bits)
        return y + missing @ self._minimums[name].T if name in self._minimums else y

    def _logits(self, x: Array, run: Any) -> Array:
        return super()._logits(self._round("head", x)[0] if "head" in self._sources else x, run)

    def _round(self, name: str, x: Array) -> tuple[Array, Array]:
        """Of x [t, in] the rounded values, and by how much sums of groups are off theirs [t, groups]."""
        if x is not self._read:  # matrices that read the same are multiplied one after the other
            self._read, self._result = x, self._round_anew(name, x)
        return self._result

    def _round_anew(self, name: str, x: Array) -> tuple[Array, Array]:
        groups = x.reshape(len(x), -1, _GROUP)
        scaled, wide = _scaled(groups)
        codes, scales = np.rint(scaled), _f16(wide)
        sums = _f16(wide * codes.sum(axis=-1))
        if self._theirs is not None:
            part, _, leaf = name.rpartition(".")
            same = f"{part}.{_SAME_INPUT.get(leaf, leaf)}".removeprefix(".")
            rows = self._theirs[self._sources[same]][self._stop - len(x) : self._stop]
            their_scaled, their_wide = _scaled(rows.reshape(groups.shape))
            their_codes = np.rint(their_scaled)
            codes = self._side(scaled, codes, their_codes, NEAR_CODE)
            scales = self._side(wide, scales, _f16(their_wide))
            exact = wide * codes.sum(axis=-1)
            sums = self._side(exact, _f16(exact), _f16(their_wide * their_codes.sum(axis=-1)))
        return (codes * scales[..., None]).reshape(x.shape), sums - scales * codes.sum(axis=-1)

    def _side(self, exact: Array, ours: Array, theirs: Array, near: float = NEAR_F16) -> Array:
        """`ours`; theirs where `exact` lies within `near` steps of the border between both."""
        self._rounded += ours.size
        steps = np.abs(ours - theirs)
        differ = steps > 0
        if not differ.any():
            return ours
        distance = np.abs(exact - (ours + theirs) / 2)[differ] / steps[differ]
        tie = distance <= near
        self._taken += int(tie.sum())
        self._refused += int((~tie).sum())
        self._farthest[near] = max(self._farthest[near], float(distance[tie].max(initial=0)))
        found = ours.copy()
        found[differ] = np.where(tie, theirs[differ], ours[differ])
        return found


def _scaled(groups: Array) -> tuple[Array, Array]:
    """[t, groups, 32] -> the same in steps, and the steps [t, groups]."""
    largest = np.abs(groups).max(axis=-1)
    steps = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return groups * steps[..., None], largest / np.float32(127)


def _f16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float32)


def _minimums(tensor: gguf.ReaderTensor, block: int) -> Array:
    """Of each group of a matrix [out, groups]."""
    blocks = np.asarray(tensor.data).reshape(int(tensor.shape[1]), -1, block)
    return np.ascontiguousarray(blocks[..., 2:4]).view(np.float16)[..., 0].astype(np.float32)
