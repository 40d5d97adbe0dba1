"""What one block loses when it computes only a part: relative error of its output, layer by layer.

The stand-in, per layer, for the end-to-end curves: all other layers stay dense, and nothing runs again. A block's output
is a sum over its neurons or heads, ``F(x) = sum_i c_i`` (+ bias), so ``F(x) - F_S(x)`` is the sum over those left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.analysis.attention import attend, norm
from dejavu.analysis.heads import HeadConcentration
from dejavu.analysis.sets import count_at
from dejavu.reference.selection import highest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from dejavu.analysis.usage import Usage
    from dejavu.executor import Trace
    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights

    Array = NDArray[np.float32]
    Mask = NDArray[np.bool_]

DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""For the oracle; the others are measured at fewer."""
COMPARED = (0.1, 0.2, 0.5)
ENERGIES = (0.9, 0.95, 0.99)
_TOKENS = 32  # of a piece
_SEEDS = {"neurons": 2, "heads": 3}


@dataclass(frozen=True, eq=False)
class _Piece:
    """What is kept of a trace; `sample` [s] are the tokens whose errors are taken."""

    sample: NDArray[np.int64]
    attn_input: Array  # [L, t, d]
    head_norm: Array  # [L, t, H]
    mlp_input: Array  # [L, s, d]
    hidden: Array  # [L, s, f]
    gate: Array  # [L, s, f]


class Blocks:
    """Errors of the blocks under partial selections, and what the blocks add to the residual stream.

    Keeps what it needs of the pieces, and reads each layer's weights once.

    Args:
        config: the model.
        weights: its tensors, not refined.
        usage: from the calibration half; the static selections are its largest.
        seed: of the sampled tokens and of the random selections.
    """

    def __init__(self, config: ModelConfig, weights: Weights, usage: Usage, seed: int) -> None:
        self._config, self._weights = config, weights
        self._usage = {"neurons": usage.neurons, "heads": usage.heads}
        self._seed = seed
        self._pieces: list[_Piece] = []
        self._heads = HeadConcentration(config)

    def add(self, trace: Trace) -> None:
        """Take in one piece."""
        t = trace.attn_input.shape[1]
        rng = np.random.default_rng([self._seed, 0, len(self._pieces)])
        sample = np.sort(rng.choice(t, min(t, _TOKENS), replace=False))  # [s]
        inside = (trace.mlp_input[:, sample], trace.hidden[:, sample], trace.gate[:, sample])
        self._pieces.append(_Piece(sample, trace.attn_input, trace.head_norm, *inside))

    def result(self) -> dict[str, Any]:
        """Everything, layer by layer.

        "blocks": errors by part and selector, shares of the oracle's selection for the energies, and the sizes of the
        blocks' outputs. "attention": see `HeadConcentration`.
        """
        layers: list[dict[str, Any]] = []
        for layer in range(self._config.n_layers):
            layers.append({"neurons": self._mlp(layer), "heads": self._attention(layer)})
            self._weights.release()
        blocks: dict[str, Any] = {"tokens": sum(len(piece.sample) for piece in self._pieces)}
        for part in ("neurons", "heads"):
            n = self._usage[part].shape[1]
            curves = {
                selector: [
                    _summary(count / n, [layer[part]["errors"][selector, count] for layer in layers])
                    for count in _counts(n, DENSITIES if selector == "oracle" else COMPARED)
                ]
                for selector in dict.fromkeys(selector for selector, _ in layers[0][part]["errors"])
            }
            shares = {f"{e:.2f}": [_share(layer[part]["energy"], n, e) for layer in layers] for e in ENERGIES}
            blocks[part] = {"relative_error": curves, "share_for_energy": shares}
        for part, block in (("heads", "attention"), ("neurons", "mlp")):
            ratios = [layer[part]["added"] for layer in layers]
            blocks[f"{block}_added"] = {"ratio": ratios, "mean": float(np.mean(ratios))}
        return {"blocks": blocks, "attention": self._heads.result()}

    def _mlp(self, layer: int) -> dict[str, Any]:
        c, prefix = self._config, f"layers.{layer}."
        x, hidden, gate = (
            np.concatenate([getattr(piece, name)[layer] for piece in self._pieces])
            for name in ("mlp_input", "hidden", "gate")
        )  # [s, d], [s, f], [s, f]; s over all pieces
        down = self._weights.read(prefix + "down.weight").T  # [f, d]
        output = hidden @ down  # [s, d]
        if "down" in c.biases:
            output += self._weights.read(prefix + "down.bias")
        scores = {"oracle": np.abs(hidden), "threshold": np.abs(gate)}
        masks = self._masks("neurons", layer, scores)
        left_out = ((key, (hidden * ~mask) @ down) for key, mask in masks)
        return {**_losses(left_out, output), "added": self._added("mlp_post_norm", layer, x, output)}

    def _attention(self, layer: int) -> dict[str, Any]:
        c, prefix = self._config, f"layers.{layer}."
        parts = []
        for piece in self._pieces:
            attention = attend(c, self._weights, layer, piece.attn_input[layer])
            self._heads.add(layer, attention, piece.head_norm[layer])
            chosen = piece.sample
            parts.append(
                (piece.attn_input[layer, chosen], attention.mixed[chosen], piece.head_norm[layer, chosen])
            )
        x, mixed, size = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        columns = self._weights.read(prefix + "o.weight").T  # [H * e, d]
        output = mixed @ columns  # [s, d]
        if "o" in c.biases:
            output += self._weights.read(prefix + "o.bias")
        masks = self._masks("heads", layer, {"oracle": size})
        left_out = ((key, (mixed * ~np.repeat(mask, c.head_dim, axis=1)) @ columns) for key, mask in masks)
        return {**_losses(left_out, output), "added": self._added("attn_post_norm", layer, x, output)}

    def _masks(
        self, part: str, layer: int, scores: Mapping[str, Array]
    ) -> Iterator[tuple[tuple[str, int], Mask]]:
        """Selections [s, n] with their selector and size."""
        s, n = scores["oracle"].shape
        everything: dict[str, NDArray[Any]] = {
            **scores,
            "static": np.broadcast_to(self._usage[part][layer], (s, n)),
            "random": np.random.default_rng([self._seed, _SEEDS[part], layer]).random((s, n)),
        }
        for selector, values in everything.items():
            for count in _counts(n, DENSITIES if selector == "oracle" else COMPARED):
                yield (selector, count), highest(values, count)

    def _added(self, post_norm: str, layer: int, x: Array, output: Array) -> float:
        """Mean of |F(x)| / |x| over the tokens; with the norm that some models apply to F."""
        if self._config.post_norms:
            output = norm(self._config, self._weights, f"layers.{layer}.{post_norm}", output)
        return float(_ratio(output, x).mean())


def _losses(left_out: Iterator[tuple[tuple[str, int], Array]], output: Array) -> dict[str, Any]:
    """Mean errors, and the oracle's share of lost energy by size, from what was left out of `output` [s, d]."""
    errors, energy = {}, {}
    for (selector, count), lost in left_out:
        ratio = _ratio(lost, output)  # [s]
        errors[selector, count] = float(ratio.mean())
        if selector == "oracle":
            energy[count] = float((ratio**2).mean())
    return {"errors": errors, "energy": energy}


def _ratio(a: Array, b: Array) -> NDArray[np.float64]:
    """|a| / |b| of rows; 0 where b is zero."""
    above, below = (np.linalg.norm(x, axis=1).astype(np.float64) for x in (a, b))
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below > 0), np.float64)


def _summary(density: float, errors: list[float]) -> dict[str, Any]:
    return {"density": density, "error": errors, "mean": float(np.mean(errors))}


def _counts(n: int, densities: tuple[float, ...]) -> list[int]:
    """The sizes of selections out of `n`, ascending, each once, without all."""
    return sorted({count_at(density, n) for density in densities} - {n})


def _share(lost: Mapping[int, float], n: int, energy: float) -> float:
    """Smallest share of `n` that keeps so much of |F|^2, interpolated between the sizes that were measured."""
    x = np.array([0, *lost, n]) / n
    y = np.array([1.0, *lost.values(), 0.0])
    i = int(np.flatnonzero(y > 1 - energy)[-1])  # the last size that keeps too little; y[0] is 1
    return float(x[i] + (x[i + 1] - x[i]) * (y[i] - (1 - energy)) / (y[i] - y[i + 1]))
