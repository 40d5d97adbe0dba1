"""The peers that there are: what each needs, and what it stores at the bits of our codecs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dejavu.bench.peers.process import PeerProcess
from dejavu.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dejavu.codecs import Codec
    from dejavu.executor import KvDtype

_FOLDER = Path(__file__).parent
_PIP_TORCH = "pip install torch==2.13.0"
"""First and by exact version: an open range may take gigabytes of CUDA."""


@dataclass(frozen=True)
class Engine:
    """A peer."""

    name: str
    backend: Path
    """A file as `child.py` describes it."""
    pip: str
    """What installs it."""
    reads: Literal["gguf", "folder"]
    types: Mapping[Codec, str]
    """Our codec -> its type of the same number of bits per weight."""
    caches: tuple[KvDtype, ...] | None
    """Types of its key/value cache; None: that of its activations, whatever ours is."""
    variants: Mapping[str, Mapping[str, Any]]
    """Ways to run it -> further arguments of ``load``."""

    def start(self, python: str) -> PeerProcess:
        """Start a process of it. Raises as `PeerProcess` does."""
        return PeerProcess(python, self.backend)


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "llama.cpp",
            _FOLDER / "llama_cpp_backend.py",
            "pip install llama-cpp-python",
            "gguf",
            # Q4_1 has scale and minimum per 32 weights, as int4 has
            {"f32": "F32", "bf16": "BF16", "int8": "Q8_0", "int4": "Q4_1"},
            ("f32", "f16", "bf16"),
            {"repacked": {"extra_buffers": True}, "plain": {"extra_buffers": False}},
        ),
        Engine(
            "transformers",
            _FOLDER / "transformers_backend.py",
            _PIP_TORCH + " && pip install transformers",
            "folder",
            {"f32": "float32", "bf16": "bfloat16"},
            None,
            {"": {}},
        ),
        Engine(
            "torch",
            _FOLDER / "transformers_backend.py",
            _PIP_TORCH + " && pip install transformers",
            "folder",
            {"int8": "qint8"},
            None,
            {"": {}},
        ),
        Engine(
            "ctranslate2",
            _FOLDER / "ctranslate2_backend.py",
            _PIP_TORCH + " && pip install ctranslate2 transformers",
            "folder",
            {"f32": "float32", "int8": "int8"},
            None,
            {"": {}},
        ),
    )
}
"""torch is the model of transformers with PyTorch's dynamic int8 linears."""


def find_engine(name: str) -> Engine:
    """The engine called `name`. Raises `InputError` for an unknown name."""
    try:
        return ENGINES[name]
    except KeyError:
        raise InputError(f"--peer {name!r} is unknown", fix=f"choose from: {', '.join(ENGINES)}") from None
