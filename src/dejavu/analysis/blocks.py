"""What one block loses when it computes only a part: relative error of its output, layer by layer.

The stand-in, per layer, for the end-to-end curves: all other layers stay dense, and nothing runs again. A block's output
is a sum over its neurons or heads, ``F(x) = sum_i c_i`` (+ bias), so ``F(x) - F_S(x)`` is the sum over those left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu.analysis.attention import attend, norm
from dejavu.analysis.heads import HeadConcentration
from dejavu.analysis.sets import count_at, top_mask

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
ENERGIES = (0.9, 0.95, 0.99)
_TOKENS = 32  # of a piece, for the errors
_SEEDS = {"neurons": 2, "heads": 3}
_SELECTORS = {"neurons": ("oracle", "threshold", "static", "random"), "heads": ("oracle", "static", "random")}


class Blocks:
    """Errors of the blocks under partial selections, and what the blocks add to the residual stream.

    Args:
        config: the model.
        weights: its tensors, not refined.
        usage: from the calibration half; the static selections are its largest.
        seed: of the sampled tokens and of the random selections.
    """

    def __init__(self, config: ModelConfig, weights: Weights, usage: Usage, seed: int) -> None:
        self._config, self._weights = config, weights
        self._static = {"neurons": usage.neurons, "heads": usage.heads}
        self._seed = seed
        self._tokens = 0
        self._sampled = 0
        sizes = {"neurons": config.base_neurons, "heads": config.n_heads}
        self._counts = {part: _counts(n) for part, n in sizes.items()}
        shapes = {part: (config.n_layers, len(counts)) for part, counts in self._counts.items()}
        self._errors = {
            part: {selector: np.zeros(shapes[part]) for selector in selectors}
            for part, selectors in _SELECTORS.items()
        }
        self._energy = {part: np.zeros(shape) for part, shape in shapes.items()}
        self._added = {block: np.zeros(config.n_layers) for block in ("attention", "mlp")}
        self.heads = HeadConcentration(config)

    def add(self, trace: Trace) -> None:
        """Take in one piece."""
        t = trace.attn_input.shape[1]
        rng = np.random.default_rng([self._seed, 0, self._tokens])
        sample = np.sort(rng.choice(t, min(t, _TOKENS), replace=False))  # [s]
        self._tokens += t
        self._sampled += len(sample)
        for layer in range(self._config.n_layers):
            self._add_mlp(layer, trace, sample)
            self._add_attention(layer, trace, sample)
            self._weights.release()

    def result(self) -> dict[str, Any]:
        """Per layer [L]: errors by part, selector and density; shares for the energies; sizes of the blocks."""
        out: dict[str, Any] = {"tokens": self._sampled}
        for part, errors in self._errors.items():
            curves = {selector: self._curve(part, sums / self._sampled) for selector, sums in errors.items()}
            out[part] = {"relative_error": curves, "share_for_energy": self._shares(part)}
        for block, added in self._added.items():
            ratio = added / self._tokens
            out[f"{block}_added"] = {"ratio": ratio.tolist(), "mean": float(ratio.mean())}
        return out

    def _add_mlp(self, layer: int, trace: Trace, sample: NDArray[np.int64]) -> None:
        c, prefix = self._config, f"layers.{layer}."
        down = self._weights.read(prefix + "down.weight")  # [d, f]
        bias = self._weights.read(prefix + "down.bias") if "down" in c.biases else np.float32(0)
        hidden = trace.hidden[layer]  # [t, f]
        output = hidden @ down.T + bias  # [t, d]
        self._add_size("mlp", layer, trace.mlp_input[layer], output)
        part, exact = hidden[sample], output[sample]  # [s, f], [s, d]
        scores = {"oracle": np.abs(part), "threshold": np.abs(trace.gate[layer][sample])}
        for selector, place, mask in self._masks("neurons", layer, scores):
            self._add_error("neurons", selector, place, layer, (part * ~mask) @ down.T, exact)

    def _add_attention(self, layer: int, trace: Trace, sample: NDArray[np.int64]) -> None:
        c, prefix = self._config, f"layers.{layer}."
        attention = attend(c, self._weights, layer, trace.attn_input[layer])
        self.heads.add(layer, attention, trace.head_norm[layer])
        rows = self._weights.read(prefix + "o.weight")  # [d, H * e]
        bias = self._weights.read(prefix + "o.bias") if "o" in c.biases else np.float32(0)
        output = attention.mixed @ rows.T + bias  # [t, d]
        self._add_size("attention", layer, trace.attn_input[layer], output)
        part, exact = attention.mixed[sample], output[sample]  # [s, H * e], [s, d]
        scores = {"oracle": trace.head_norm[layer][sample]}
        for selector, place, mask in self._masks("heads", layer, scores):
            left_out = part * ~np.repeat(mask, c.head_dim, axis=1)  # [s, H * e]
            self._add_error("heads", selector, place, layer, left_out @ rows.T, exact)

    def _masks(self, part: str, layer: int, scores: Mapping[str, Array]) -> Iterator[tuple[str, int, Mask]]:
        """Selections [s, n], with their selector and the place of their size in `_counts`."""
        s, n = scores["oracle"].shape
        rng = np.random.default_rng([self._seed, _SEEDS[part], layer, self._tokens])
        everything: dict[str, NDArray[Any]] = {
            **scores,
            "static": np.broadcast_to(self._static[part][layer], (s, n)),
            "random": rng.random((s, n), np.float32),
        }
        for place, count in enumerate(self._counts[part]):
            for selector, values in everything.items():
                yield selector, place, top_mask(values, count)

    def _add_error(
        self, part: str, selector: str, place: int, layer: int, left_out: Array, exact: Array
    ) -> None:
        """`left_out` [s, d] is the output of what was not selected, `exact` [s, d] that of all."""
        whole = np.linalg.norm(exact, axis=1).astype(np.float64)  # [s]
        lost = np.linalg.norm(left_out, axis=1).astype(np.float64)
        ratio = np.divide(lost, whole, out=np.zeros_like(lost), where=whole > 0)  # [s]
        self._errors[part][selector][layer, place] += ratio.sum()
        if selector == "oracle":
            self._energy[part][layer, place] += (ratio**2).sum()

    def _add_size(self, block: str, layer: int, x: Array, output: Array) -> None:
        """Sum of |F(x)| / |x| over the tokens; with the norm that some models apply to F."""
        if self._config.post_norms:
            name = "attn_post_norm" if block == "attention" else "mlp_post_norm"
            output = norm(self._config, self._weights, f"layers.{layer}.{name}", output)
        size = np.linalg.norm(x, axis=1).astype(np.float64)
        added = np.linalg.norm(output, axis=1).astype(np.float64)
        self._added[block][layer] += np.divide(added, size, out=np.zeros_like(size), where=size > 0).sum()

    def _curve(self, part: str, errors: NDArray[np.float64]) -> list[dict[str, Any]]:
        """`errors` [L, counts] as one entry per density."""
        densities = (count / self._static[part].shape[1] for count in self._counts[part])
        return [
            {"density": density, "error": column.tolist(), "mean": float(column.mean())}
            for density, column in zip(densities, errors.T, strict=True)
        ]

    def _shares(self, part: str) -> dict[str, list[float]]:
        """Smallest share of the oracle's selection that keeps 90, 95, 99% of |F|^2: interpolated, per layer."""
        densities = np.array([0, *self._counts[part], n := self._static[part].shape[1]]) / n
        lost = self._energy[part] / self._sampled  # [L, counts]
        curves = np.pad(
            np.pad(lost, ((0, 0), (1, 0)), constant_values=1), ((0, 0), (0, 1))
        )  # [L, 1 + counts + 1]
        return {
            f"{energy:.2f}": [_crossing(densities, curve, 1 - energy) for curve in curves]
            for energy in ENERGIES
        }


def _counts(n: int) -> list[int]:
    """The sizes of selections out of `n`, ascending, each once, without all."""
    return sorted({count_at(density, n) for density in DENSITIES} - {n})


def _crossing(x: NDArray[np.float64], y: NDArray[np.float64], level: float) -> float:
    """Where the falling curve through (x, y) comes down to `level` for good."""
    above = np.flatnonzero(y > level)
    i = int(above[-1])  # y[0] is 1
    return float(x[i] + (x[i + 1] - x[i]) * (y[i] - level) / (y[i] - y[i + 1]))
