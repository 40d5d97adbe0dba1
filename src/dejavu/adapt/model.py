"""`Decoder`: the forward pass of `dejavu.reference` in torch, for several documents at once and with gradients.

Documents lie one after the other in a row of n tokens; attention stays within each. Shapes: d = d_model, E = embed_dim,
H heads, K K/V heads, e = head_dim, f = d_ff, t tokens of one document. Norms and the residual stream are float32,
products are in the type of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.nn import functional as nn

from dejavu.adapt.operations import causal_softmax, gather, hidden_values, linear, rms_norm, rotate, spread
from dejavu.errors import UnsupportedModelError
from dejavu.models.alibi import alibi_slopes
from dejavu.models.rope import depends_on_length, is_local, tables
from dejavu.models.tensors import tensor_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights
    from dejavu.training.stream import Piece

    Tensors = Mapping[str, Tensor]


_STEP = 64
"""Documents are padded to a multiple of this for attention."""


@dataclass(frozen=True)
class Batch:
    """Tokens of documents, one after the other."""

    tokens: Tensor
    """int64 [n]"""
    lengths: tuple[int, ...]
    """Tokens of each document; they add up to n."""
    shapes: tuple[tuple[int, int], ...]
    """For attention, groups of b documents of about the same length, padded to T: [b, T] of each."""
    rows: Tensor
    """int64 [m]: the tokens that stand in the groups, one after the other, each document padded with its last."""
    places: Tensor
    """int64 [n]: where each token stands in `rows`."""

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Batch:
        """Pieces of tokens, each a document."""
        lengths = tuple(map(len, pieces))
        starts = np.cumsum((0, *lengths))
        widths = [-(-length // _STEP) * _STEP for length in lengths]
        places, rows, base = np.empty(starts[-1], np.int64), [], 0
        for width in sorted(set(widths)):
            for i in (i for i, w in enumerate(widths) if w == width):
                span = np.arange(width)
                rows.append(starts[i] + np.minimum(span, lengths[i] - 1))
                places[starts[i] : starts[i + 1]] = base + span[: lengths[i]]
                base += width
        shapes = tuple((widths.count(width), width) for width in sorted(set(widths)))
        tokens = torch.from_numpy(np.concatenate(pieces).astype(np.int64))
        return cls(tokens, lengths, shapes, torch.from_numpy(np.concatenate(rows)), torch.from_numpy(places))


class Masks(Protocol):
    """Decides which neurons run."""

    def __call__(self, layer: int, block: Block) -> Tensor:
        """`block.hidden()` [n, f] with zeros where a neuron does not run."""


@dataclass(frozen=True)
class Block:
    """What an MLP knows before its last product."""

    decoder: Decoder
    inputs: Sequence[Tensor]
    """Of this layer and those before it: the residual stream entering the MLP, float32 [n, d]."""
    y: Tensor
    """Its normed input [n, d]."""
    products: Tensor
    """g; ungated: u [n, f]."""
    up: Tensor | None
    """u [n, f]; ungated: None."""

    @property
    def gate(self) -> Tensor:
        """act(g); ungated: act(u) [n, f]."""
        return hidden_values(self.products, None, self.decoder.config)

    def hidden(self, chosen: Tensor | None = None) -> Tensor:
        """act(g) * u; ungated: act(u) [n, f]. `chosen` [n, f]: 1 for neurons that run, 0 for the others."""
        return hidden_values(self.products, self.up, self.decoder.config, chosen)


def read_tensors(config: ModelConfig, weights: Weights) -> dict[str, Tensor]:
    """All tensors of a model, float32."""
    return {name: torch.from_numpy(weights.read(name)) for name in tensor_shapes(config)}


def is_linear(name: str) -> bool:
    """Whether a tensor belongs to a product, which runs in the type that was chosen; the others stay float32."""
    return "norm" not in name and not name.startswith("embed.") and not name.startswith("head.")


class Decoder:
    """One decoder for all families.

    Args:
        config: the model.
        tensors: by dejavu's names; linears in the type of the products, everything else float32.
        turned: transposes of weights of linears, by the weights' names; see `linear`. None: views of them.

    Raises:
        UnsupportedModelError: RoPE frequencies that depend on the length of a text.
    """

    def __init__(self, config: ModelConfig, tensors: Tensors, turned: Tensors | None = None) -> None:
        if config.position == "rope" and depends_on_length(config):
            raise UnsupportedModelError(
                f"{config.family}: models with rope type 'dynamic' cannot be adapted",
                fix="take another model",
            )
        self.config = config
        self._w = tensors
        self._turned = turned or {}
        self._slopes = torch.from_numpy(alibi_slopes(config.n_heads)) if config.position == "alibi" else None
        self._biases: dict[int, Tensor] = {}

    def __call__(
        self, batch: Batch, masks: Masks | None = None, streams: list[Tensor] | None = None
    ) -> Tensor:
        """What the head multiplies, [n, E].

        Args:
            batch: the documents.
            masks: which neurons run; None: all.
            streams: gets the residual stream after each layer, float32 [n, d].
        """
        c, w = self.config, self._w
        positions = torch.cat([torch.arange(t) for t in batch.lengths])  # [n]
        x = w["embed.weight"][batch.tokens] * c.embed_scale  # [n, E]
        if c.d_embed:
            x = x @ w["embed.proj_in"].T  # [n, d]
        if c.position == "learned":
            x = x + w["embed.position"][positions + c.position_offset]  # [n, d]
        if c.embed_norm:
            x = self.norm("embed.norm", x)  # [n, d]
        turns = self._turns(batch, positions)
        inputs: list[Tensor] = []
        for i in range(c.n_layers):
            x = self._layer(i, x, batch, turns, inputs, masks)  # [n, d]
            if streams is not None:
                streams.append(x)
        if c.final_norm:
            x = self.norm("final_norm", x)  # [n, d]
        return x @ w["embed.proj_out"].T if c.d_embed else x

    def norm(self, name: str, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[n, d] -> [n, d], of type `dtype`."""
        c, weight = self.config, self._w[name + ".weight"]
        if c.norm == "rms":
            return rms_norm(x, weight, c.norm_eps, dtype)
        return nn.layer_norm(x, weight.shape, weight, self._w[name + ".bias"], c.norm_eps).to(dtype)

    def linear(self, name: str, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """[n, in] -> [n, out], by the tensor of that name or by `weight` in its place."""
        turned = self._turned.get(name + ".weight") if weight is None else None
        weight = self._w[name + ".weight"] if weight is None else weight
        turned = weight.detach().T if turned is None else turned
        return linear(x.to(weight.dtype), weight, turned, self._w.get(name + ".bias"))

    def _layer(
        self,
        i: int,
        x: Tensor,
        batch: Batch,
        turns: Mapping[bool, tuple[Tensor, Tensor]],
        inputs: list[Tensor],
        masks: Masks | None,
    ) -> Tensor:
        c, p = self.config, f"layers.{i}."
        dtype = self._w[p + "up.weight"].dtype
        if not c.pre_norm:
            x = self.norm(p + "attn_norm", x + self._attention(i, x, batch, turns))
            inputs.append(x)
            return self.norm(p + "mlp_norm", x + self.mlp(i, x, inputs, masks))
        branch = self._attention(i, self.norm(p + "attn_norm", x, dtype), batch, turns)
        if c.post_norms:
            branch = self.norm(p + "attn_post_norm", branch.float())
        after = x + branch
        inputs.append(x if c.parallel_residual else after)
        branch = self.mlp(i, self.norm(p + "mlp_norm", inputs[i], dtype), inputs, masks)
        if c.post_norms:
            branch = self.norm(p + "mlp_post_norm", branch.float())
        return after + branch

    def mlp(self, i: int, y: Tensor, inputs: Sequence[Tensor], masks: Masks | None) -> Tensor:
        """The MLP of layer i on its normed input, [n, d] -> [n, d]; `inputs`: see `Block`."""
        c, p = self.config, f"layers.{i}."
        y = y.to(self._w[p + "up.weight"].dtype)
        products = self.linear(p + ("gate" if c.gated else "up"), y)  # [n, f]
        up = self.linear(p + "up", y) if c.gated else None  # [n, f]
        block = Block(self, inputs, y, products, up)
        hidden = block.hidden() if masks is None else masks(i, block)  # [n, f]
        return self.linear(p + "down", hidden)  # [n, d]

    def _attention(
        self, i: int, y: Tensor, batch: Batch, turns: Mapping[bool, tuple[Tensor, Tensor]]
    ) -> Tensor:
        c, p, n = self.config, f"layers.{i}.", len(y)
        y = y.to(self._w[p + "q.weight"].dtype)
        q = self.linear(p + "q", y).view(n, c.n_heads, c.head_dim)  # [n, H, e]
        k = self.linear(p + "k", y).view(n, c.n_kv_heads, c.head_dim)  # [n, K, e]
        v = self.linear(p + "v", y).view(n, c.n_kv_heads, c.head_dim)  # [n, K, e]
        if c.qk_norm:
            q = rms_norm(q.float(), self._w[p + "q_norm.weight"], c.norm_eps, v.dtype)
            k = rms_norm(k.float(), self._w[p + "k_norm.weight"], c.norm_eps, v.dtype)
        if c.position == "rope":
            cos, sin = turns[is_local(c, i)]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        sizes = [b * t for b, t in batch.shapes]
        parts = [
            torch.split(spread(x, batch.rows, batch.places), sizes) for x in (q, k, v)
        ]  # [b T, H or K, e]
        groups = [
            self._attend(i, *(x.view(*shape, -1, c.head_dim) for x in group)).view(-1, c.n_heads * c.head_dim)
            for shape, *group in zip(batch.shapes, *parts, strict=True)
        ]
        mixed = gather(torch.cat(groups), batch.places)  # [n, H e]
        return self.linear(p + "o", mixed)  # [n, d]

    def _attend(self, i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Documents, causally: q [b, T, H, e], k and v [b, T, K, e] -> [b, T, H e]."""
        c, (b, t) = self.config, q.shape[:2]
        shared = c.n_heads // c.n_kv_heads
        q = q.view(b, t, c.n_kv_heads, shared, -1).permute(0, 2, 3, 1, 4)  # [b, K, H/K, T, e]
        q = q.reshape(b, c.n_kv_heads, shared * t, -1)  # [b, K, H/K T, e]
        scores, scale = q @ k.permute(0, 2, 3, 1), c.scale  # [b, K, H/K T, T]
        if c.attn_softcap:
            scores, scale = c.attn_softcap * torch.tanh(scores * (scale / c.attn_softcap)), 1.0
        scores = scores.view(b, c.n_kv_heads, shared, t, t)
        if self._slopes is not None:
            scores, scale = scores * scale + self._bias(t).to(q.dtype), 1.0
        window = c.sliding_window if c.windowed(i) else 0
        weights = causal_softmax(scores, window, scale).view(b, c.n_kv_heads, shared * t, t)
        mixed = weights @ v.transpose(1, 2)  # [b, K, H/K T, e]
        return mixed.view(b, c.n_heads, t, -1).transpose(1, 2).reshape(b, t, -1)

    def _bias(self, t: int) -> Tensor:
        """ALiBi's, added to the scores of t tokens [K, H/K, t, t]."""
        if t not in self._biases:
            assert self._slopes is not None  # noqa: S101
            apart = torch.arange(t)[None, :] - torch.arange(t)[:, None]  # [t, t]
            self._biases[t] = self._slopes.view(self.config.n_kv_heads, -1, 1, 1) * apart
        return self._biases[t]

    def _turns(self, batch: Batch, positions: Tensor) -> dict[bool, tuple[Tensor, Tensor]]:
        """Cos and sin of RoPE [n, 1, r/2], by `is_local`."""
        c = self.config
        if c.position != "rope":
            return {}
        kinds = {is_local(c, i) for i in range(c.n_layers)}
        span = np.arange(max(batch.lengths), dtype=np.int64)
        found = {}
        for local in kinds:
            cos, sin = (torch.from_numpy(x)[positions][:, None] for x in tables(c, span, local=local))
            found[local] = cos, sin
        return found
