"""llama.cpp with what its products read: a backend of dejavu's `bench/peers/child.py`, for a Python with llama-cpp-python.

llama.cpp calls back after every node of its graph that it was asked to show. A product of a quantised matrix with float32
inputs is shown, and its inputs, the ones before they are rounded to 8 bits, are kept.
"""

from __future__ import annotations

import ctypes
import runpy
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

_PLAIN = Path(__file__).resolve().parents[2] / "src/dejavu/bench/peers/llama_cpp_backend.py"
_Plain = runpy.run_path(str(_PLAIN))
VERSION = _Plain["VERSION"]
_F32 = 0


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` (ggml.h), up to its name."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


class Backend(_Plain["Backend"]):  # type: ignore[misc]
    """The plain backend; `load` says in addition whether attention is fused and which matrices are watched."""

    def load(self, *, fused_attention: bool = True, watch: tuple[str, ...] = (), **rest: Any) -> None:
        """Load a file. Inputs of products with the matrices `watch` (llama.cpp's names) are kept."""
        self.fused_attention, self.watch = fused_attention, frozenset(name.encode() for name in watch)
        self.inputs: dict[str, list[np.ndarray]] = {}
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self.show)  # lives as long as contexts do
        super().load(**rest)

    def context_options(self, room: int, sequences: int) -> Any:
        options = super().context_options(room, sequences)
        if not self.fused_attention:
            options.flash_attn_type = 0
        if self.watch:
            options.cb_eval = self.callback
        return options

    def show(self, address: int, asks: bool, _: object) -> bool:
        """Called by llama.cpp with a node: before it is computed (`asks`; shall it be shown?), and after it."""
        node = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
        if not node.src[0] or not node.src[1]:
            return not asks
        matrix, inputs = node.src[0].contents, node.src[1].contents
        if matrix.name not in self.watch or inputs.type != _F32:  # embeddings are looked up by integers
            return not asks
        if not asks:
            width, rows = inputs.ne[0], inputs.ne[1]
            if inputs.nb[1] != 4 * width or inputs.ne[2] * inputs.ne[3] != 1:
                raise RuntimeError("the inputs of a product do not lie in rows")
            found = np.ctypeslib.as_array(
                ctypes.cast(inputs.data, ctypes.POINTER(ctypes.c_float)), (rows, width)
            )
            self.inputs.setdefault(matrix.name.decode(), []).append(found.copy())
        return True

    def clear(self) -> None:
        """Forget all sequences and what was read."""
        self.inputs.clear()
        super().clear()

    def run(self, tokens: list[int], start: int, *, sequence: int = 0, all_logits: bool = False) -> None:
        """Append tokens; where inputs are watched, no position is left out of the last layer."""
        super().run(tokens, start, sequence=sequence, all_logits=all_logits or bool(self.watch))

    def save_inputs(self, path: str) -> str:
        """What the watched products read since `clear`, each [tokens, in], into a .npz file by the matrices' names."""
        np.savez(path, **{name: np.concatenate(rows) for name, rows in self.inputs.items()})
        return path
