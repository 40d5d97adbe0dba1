"""CTranslate2 as a peer: converts a folder of transformers, and runs it. A backend of `child.py`."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import ctranslate2
import torch
import transformers
from ctranslate2.converters import TransformersConverter

VERSION = f"ctranslate2 {ctranslate2.__version__}"


class Numbers:
    """In the place of a tokenizer: every token is called by its number."""

    def __init__(self, size: int) -> None:
        self._size = size

    def get_vocab(self) -> dict[str, int]:
        """All tokens."""
        return {str(i): i for i in range(self._size)}

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_token_id"):
            return 0
        if name.endswith("_token"):
            return "0"
        raise AttributeError(name)


class Converter(TransformersConverter):  # type: ignore[misc]  # its package has no types
    """Takes folders without tokenizer, and such without weights: those get random ones."""

    def load_model(self, model_class: Any, model_name_or_path: str, **kwargs: Any) -> Any:
        """The model to convert."""
        if any(Path(model_name_or_path).glob("*.safetensors")):
            return super().load_model(model_class, model_name_or_path, **kwargs)
        return model_class(kwargs["config"])

    def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **kwargs: Any) -> Any:
        """`Numbers`."""
        return Numbers(transformers.AutoConfig.from_pretrained(model_name_or_path).vocab_size)


class Backend:
    """One loaded model."""

    def load(self, path: str, threads: int, dtype: str) -> None:
        """Load a folder with weights of `dtype`: "float32" or "int8" (activations are rounded to int8 on the way)."""
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            Converter(path).convert(folder, quantization=dtype, force=True)
            self.generator = ctranslate2.Generator(
                folder, compute_type=dtype, intra_threads=threads, inter_threads=1
            )

    def time(self, kind: str, rows: list[list[int]], depth: int) -> dict[str, Any]:
        """As `dejavu.bench.timing.time_test`; rows [batch, depth + tokens]."""
        if kind == "pp":
            return {"first": self.prompt(rows), "steps": []}
        # What is put before generates as if it had been chosen, token by token, and is timed as that.
        moments: list[list[float]] = [[] for _ in rows]

        def note(step: Any) -> bool:
            moments[step.batch_id].append(time.perf_counter())
            return False

        start = time.perf_counter()
        self.generator.generate_batch(
            [[str(token) for token in row] for row in rows],
            max_length=len(rows[0]),
            include_prompt_in_result=True,
            end_token=[],
            callback=note,
        )
        ends = [start, *(max(at) for at in zip(*moments, strict=True))]
        steps = [after - before for before, after in itertools.pairwise(ends)]
        return {"first": sum(steps[:depth]) if depth else None, "steps": steps[depth:]}

    def prompt(self, rows: list[list[int]]) -> float:
        """Seconds until the token after the prompts is there."""
        start = time.perf_counter()
        self.generator.generate_batch(
            [[str(token) for token in row] for row in rows],
            max_length=1,
            include_prompt_in_result=False,
            end_token=[],
        )
        return time.perf_counter() - start
