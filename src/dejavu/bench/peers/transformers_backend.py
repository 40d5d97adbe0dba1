"""Hugging Face transformers as a peer, and PyTorch's dynamic int8 linears in it. A backend of `child.py`."""

from __future__ import annotations

import inspect
import time
from pathlib import Path
from typing import Any

import torch
import transformers

VERSION = f"transformers {transformers.__version__}, torch {torch.__version__}"


class Backend:
    """One loaded model."""

    def load(self, path: str, threads: int, dtype: str) -> None:
        """Load a folder; one without weights gets random ones.

        `dtype`: "float32", "bfloat16"; or "qint8": linears with int8 weights, and activations rounded to int8 on the way.
        """
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        models: Any = transformers.AutoModelForCausalLM
        if any(Path(path).glob("*.safetensors")):
            model = models.from_pretrained(path)
        else:
            model = models.from_config(transformers.AutoConfig.from_pretrained(path))
        if dtype == "qint8":
            quantization: Any = torch.ao.quantization
            model = quantization.quantize_dynamic(model.float(), {torch.nn.Linear}, dtype=torch.qint8)
        else:
            model = model.to(getattr(torch, dtype))
        self.model = model.eval()
        known = inspect.signature(type(self.model).forward).parameters
        self.cache_name = "cache" if "cache" in known else "past_key_values"  # before transformers 5.24

    def time(self, kind: str, rows: list[list[int]], depth: int) -> dict[str, Any]:
        """As `dejavu.bench.timing.time_test`; rows [batch, depth + tokens]."""
        tokens = torch.tensor(rows)
        prompt = tokens.shape[1] if kind == "pp" else depth
        cache = None
        start = time.perf_counter()
        if prompt:
            cache, logits = self.step(tokens[:, :prompt], cache)
        first = time.perf_counter() - start
        steps = []
        for position in range(prompt, tokens.shape[1]):
            start = time.perf_counter()
            cache, logits = self.step(tokens[:, position : position + 1], cache)
            steps.append(time.perf_counter() - start)
        if not torch.isfinite(logits).all():
            raise RuntimeError("the logits are not finite")
        return {"first": first, "steps": steps}

    def step(self, tokens: torch.Tensor, cache: Any) -> tuple[Any, torch.Tensor]:
        """Append tokens [batch, n]; the cache, and logits [batch, 1, vocab] of the last."""
        out = self.model(tokens, **{self.cache_name: cache}, use_cache=True, logits_to_keep=1)
        return out[self.cache_name], out.logits
