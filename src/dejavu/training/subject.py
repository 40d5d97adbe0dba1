"""The model that a plan is trained for: executor, tokenizer and float weights of one file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dejavu.engine import NativeExecutor
from dejavu.models.loading import fetch, open_model
from dejavu.opening import natural_codec
from dejavu.reference import ReferenceExecutor
from dejavu.refinement import refine
from dejavu.tokenizer import Tokenizer

if TYPE_CHECKING:
    from dejavu.codecs import Codec
    from dejavu.executor import Executor
    from dejavu.models.loading import OpenModel
    from dejavu.models.progress import Progress


@dataclass(frozen=True)
class Subject:
    """Close it when done."""

    opened: OpenModel
    """The model's own tensors, as float32."""
    executor: Executor
    tokenizer: Tokenizer
    codec: Codec

    @property
    def fingerprint(self) -> str:
        """What plans name the model by."""
        return self.opened.weights.fingerprint

    def close(self) -> None:
        """Give files, threads and memory back."""
        self.executor.close()
        self.opened.close()


def open_subject(
    model: str,
    *,
    codec: Codec | Literal["auto"] = "auto",
    leading: int,
    executor: Literal["native", "reference"] = "native",
    threads: int | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Subject:
    """Load a model for training.

    Args:
        model: as for `LLM.from_pretrained`.
        codec: how weights are held; "auto" suits the file, and int8 where float weights are to be cut.
        leading: bits that lie apart, for sketches; 0: none.
        executor: what runs it.
        threads: of the native executor.
        offline: never use the network.
        progress: told about downloads and packing.

    Raises:
        DejavuError: the model cannot be found, fetched, read or run.
    """
    path = fetch(model, offline=offline, progress=progress)
    opened = open_model(path)
    try:
        tokenizer = Tokenizer.from_model(opened)
        tokenizer.check_fits(opened.config.vocab_size)
        chosen: Codec = natural_codec(opened.weights) if codec == "auto" else codec
        if codec == "auto" and leading and chosen not in ("int8", "int4"):
            chosen = "int8"
        runs: Executor
        if executor == "reference":
            runs = ReferenceExecutor(*refine(opened.config, opened.weights, chosen), codec=chosen)
        else:
            runs = NativeExecutor.load(
                path, codec=chosen, kv_dtype="f16", threads=threads, leading=leading, progress=progress
            )
    except BaseException:
        opened.close()
        raise
    return Subject(opened, runs, tokenizer, chosen)
