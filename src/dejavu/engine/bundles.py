"""Gathers a model's tensors into the rows of bundles, a few megabytes at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dejavu.engine.layout import PLAIN_ROWS
from dejavu.models.weights import COLUMN_STEP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dejavu.engine.layout import Bundled, Leading
    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights

_CHUNK_BYTES = 16 << 20


def chunks(
    config: ModelConfig, weights: Weights, section: Bundled | Leading
) -> Iterator[NDArray[np.float32]]:
    """The section's weights as float32 [bundles, rows, width], in order, in pieces of some 16 MB.

    An MLP's leading bits come with the down row, which goes to the section beside them.
    """
    prefix, _, kind = section.name.rpartition(".")
    if kind == "heads":
        yield from _queries(config, weights, f"{prefix}.")
    elif kind == "o":
        yield from _outputs(config, weights, f"{prefix}.")
    elif kind == "kv":
        k, v = (weights.read(f"{prefix}.{name}.weight") for name in "kv")
        shape = (config.n_kv_heads, config.head_dim, config.d_model)
        yield np.concatenate([k.reshape(shape), v.reshape(shape)], axis=1)
    elif kind in ("mlp", "lead"):
        yield from _neurons(config, weights, f"{prefix}.")
    else:
        yield from _plain(weights, section.name)


def _queries(config: ModelConfig, weights: Weights, prefix: str) -> Iterator[NDArray[np.float32]]:
    """Per query head: its rows of q."""
    hd, d = config.head_dim, config.d_model
    step = max(1, _CHUNK_BYTES // (4 * hd * d))
    for first in range(0, config.n_heads, step):
        n = min(step, config.n_heads - first)
        yield weights.read(f"{prefix}q.weight", first * hd, (first + n) * hd).reshape(n, hd, d)


def _outputs(config: ModelConfig, weights: Weights, prefix: str) -> Iterator[NDArray[np.float32]]:
    """Per query head: its columns of o, transposed."""
    hd, d = config.head_dim, config.d_model
    step = COLUMN_STEP // math.gcd(COLUMN_STEP, hd)  # heads whose columns begin at a border of read_columns
    step *= max(1, _CHUNK_BYTES // (4 * step * hd * d))
    for first in range(0, config.n_heads, step):
        n = min(step, config.n_heads - first)
        o = weights.read_columns(f"{prefix}o.weight", first * hd, (first + n) * hd)  # [d, n * hd]
        yield np.ascontiguousarray(o.T).reshape(n, hd, d)


def _neurons(config: ModelConfig, weights: Weights, prefix: str) -> Iterator[NDArray[np.float32]]:
    """Per neuron: gate row (gated), up row, down column."""
    rows = ("gate", "up") if config.gated else ("up",)
    step = max(COLUMN_STEP, _CHUNK_BYTES // (4 * config.d_model * 3) // COLUMN_STEP * COLUMN_STEP)
    for first in range(0, config.d_ff, step):
        last = min(first + step, config.d_ff)
        parts = [weights.read(f"{prefix}{name}.weight", first, last) for name in rows]  # [n, d] each
        parts.append(weights.read_columns(f"{prefix}down.weight", first, last).T)
        yield np.stack(parts, axis=1)  # [n, parts, d]


def _plain(weights: Weights, name: str) -> Iterator[NDArray[np.float32]]:
    """Rows sixteen by sixteen; the last bundle is filled up with zeros."""
    total, width = weights.shape(name)
    step = max(1, _CHUNK_BYTES // (4 * width * PLAIN_ROWS)) * PLAIN_ROWS
    for first in range(0, total, step):
        rows = weights.read(name, first, min(first + step, total))
        if missing := -len(rows) % PLAIN_ROWS:
            rows = np.concatenate([rows, np.zeros((missing, width), np.float32)])
        yield rows.reshape(-1, PLAIN_ROWS, width)
