"""`ReferenceExecutor`: one decoder for all families, in NumPy float32.

Shapes: t tokens, d = d_model, E = embed_dim, H heads, K K/V heads, e = head_dim, f = d_ff, V = vocab_size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dejavu.codecs import CODECS, Codec, embed_codec, roundtrip
from dejavu.errors import InputError, NumericsError, PlanError
from dejavu.executor import KV_DTYPES, TRACE_FIELDS, KvDtype
from dejavu.models.alibi import alibi_slopes
from dejavu.models.rope import is_local, tables
from dejavu.models.tensors import tensor_shapes
from dejavu.reference.cache import ReferenceCache
from dejavu.reference.ops import activate, attention, layer_norm, rms_norm, rotate, softcap

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from dejavu.executor import Cache, Trace, TraceField
    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights
    from dejavu.plan import AccessPlan

    Array = NDArray[np.float32]

_ROWS = {"q.weight", "k.weight", "v.weight", "gate.weight", "up.weight"}  # bundled by row
_COLUMNS = {"o.weight", "down.weight"}  # bundled by column


class ReferenceExecutor:
    """A `dejavu.executor.Executor` that holds all weights as float32.

    Args:
        config: the model.
        weights: its tensors; read once here, not closed.
        codec: weights are rounded as a bundle of this codec would hold them.
        kv_dtype: keys and values are rounded to this when they are cached.

    Raises:
        InputError: an unknown codec or kv_dtype.
        NumericsError: a weight is NaN or infinite; names the tensor.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, *, codec: Codec = "f32", kv_dtype: KvDtype = "f32"
    ) -> None:
        for what, value, known in (("codec", codec, CODECS), ("kv_dtype", kv_dtype, KV_DTYPES)):
            if value not in known:
                raise InputError(f"{what} {value!r} is unknown; there are: {', '.join(known)}")
        self.config = config
        self._kv_dtype = kv_dtype
        self._slopes = alibi_slopes(config.n_heads) if config.position == "alibi" else None  # [H]
        self._w = {name: _read(name, weights, codec) for name in tensor_shapes(config)}
        weights.release()

    def new_cache(self) -> ReferenceCache:
        """An empty cache."""
        return ReferenceCache(self.config, self._kv_dtype)

    def set_plan(self, plan: AccessPlan | None) -> None:
        """Decode by `plan` from now on; None: dense."""
        if plan is not None:
            raise PlanError("the reference executor cannot run access plans yet")

    @property
    def last_stats(self) -> dict[str, Any]:
        """Mean densities of the last call that ran a plan."""
        return {}

    def trace(self, tokens: NDArray[np.int32], *, want: Collection[TraceField] = TRACE_FIELDS) -> Trace:
        """What happens inside the dense model."""
        raise PlanError("the reference executor cannot trace yet")

    def prefill(
        self, tokens: NDArray[np.int32], cache: Cache, *, all_logits: bool = False, sparse: bool = False
    ) -> Array:
        """Append `tokens` [t]; logits after the last one [1, V] or after each [t, V]."""
        x = self._forward(tokens, cast("ReferenceCache", cache))  # [t, d]
        return self._logits(x if all_logits else x[-1:])  # [t or 1, V]

    def decode(self, tokens: NDArray[np.int32], caches: Sequence[Cache]) -> Array:
        """Append one token to each of b sequences: `tokens` [b] -> logits [b, V]."""
        if len(tokens) != len(caches) or not len(tokens):
            raise InputError(f"{len(tokens)} tokens for {len(caches)} sequences")
        steps = [self.prefill(tokens[i : i + 1], cache) for i, cache in enumerate(caches)]  # b of [1, V]
        return np.concatenate(steps)  # [b, V]

    def close(self) -> None:
        """Drop the weights."""
        self._w.clear()

    def _forward(self, tokens: NDArray[np.int32], cache: ReferenceCache) -> Array:
        """Hidden states after the last layer, [t, d]; the cache grows by t."""
        c, w = self.config, self._w
        start, stop = cache.length, cache.length + len(tokens)
        if not len(tokens):
            raise InputError("there are no tokens to run")
        if tokens.min() < 0 or tokens.max() >= c.vocab_size:
            raise InputError(f"a token id is outside the vocabulary of {c.vocab_size}")
        if stop > c.max_context:
            raise InputError(f"{stop} tokens exceed the context of {c.max_context}")
        positions = np.arange(start, stop)  # [t]
        x: Array = w["embed.weight"][tokens] * np.float32(c.embed_scale)  # [t, E]
        if c.d_embed:
            x = x @ w["embed.proj_in"].T  # [t, d]
        if c.position == "learned":
            x = x + w["embed.position"][positions + c.position_offset]  # [t, d]
        if c.embed_norm:
            x = self._norm("embed.norm", x)  # [t, d]
        for i in range(c.n_layers):
            x = self._layer(i, x, positions, cache)  # [t, d]
        cache.length = stop
        return x

    def _layer(self, i: int, x: Array, positions: NDArray[np.int64], cache: ReferenceCache) -> Array:
        """One layer, [t, d] -> [t, d]."""
        c, p = self.config, f"layers.{i}."
        if not c.pre_norm:
            x = self._norm(p + "attn_norm", x + self._attention(i, x, positions, cache))  # [t, d]
            return self._norm(p + "mlp_norm", x + self._mlp(i, x))  # [t, d]
        branch = self._attention(i, self._norm(p + "attn_norm", x), positions, cache)  # [t, d]
        if c.post_norms:
            branch = self._norm(p + "attn_post_norm", branch)  # [t, d]
        after = x + branch  # [t, d]
        branch = self._mlp(i, self._norm(p + "mlp_norm", x if c.parallel_residual else after))  # [t, d]
        if c.post_norms:
            branch = self._norm(p + "mlp_post_norm", branch)  # [t, d]
        return after + branch  # [t, d]

    def _attention(self, i: int, x: Array, positions: NDArray[np.int64], cache: ReferenceCache) -> Array:
        """All heads of a layer, [t, d] -> [t, d]."""
        c, p, t = self.config, f"layers.{i}.", len(x)
        q = self._linear(p + "q", x).reshape(t, c.n_heads, c.head_dim)  # [t, H, e]
        k = self._linear(p + "k", x).reshape(t, c.n_kv_heads, c.head_dim)  # [t, K, e]
        v = self._linear(p + "v", x).reshape(t, c.n_kv_heads, c.head_dim)  # [t, K, e]
        if c.qk_norm:
            q = rms_norm(q, self._w[p + "q_norm.weight"], c.norm_eps)  # [t, H, e]
            k = rms_norm(k, self._w[p + "k_norm.weight"], c.norm_eps)  # [t, K, e]
        start, stop = cache.length, cache.length + t
        if c.position == "rope":
            cos, sin = tables(c, positions, local=is_local(c, i), length=stop)  # [t, r/2]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # [t, H, e], [t, K, e]
        keys, values = cache.put(i, start, k, v)  # [n, K, e], n = start + t
        window = c.sliding_window if c.windowed(i) else 0
        heads = attention(
            q, keys, values, scale=c.scale, window=window, cap=c.attn_softcap, slopes=self._slopes
        )  # [t, H, e]
        return self._linear(p + "o", heads.reshape(t, -1))  # [t, d]

    def _mlp(self, i: int, x: Array) -> Array:
        """The neurons of a layer, [t, d] -> [t, d]."""
        c, p = self.config, f"layers.{i}."
        up = self._linear(p + "up", x)  # [t, f]
        if c.gated:
            hidden = activate(self._linear(p + "gate", x), c.activation) * up  # [t, f]
        else:
            hidden = activate(up, c.activation)  # [t, f]
        return self._linear(p + "down", hidden)  # [t, d]

    def _logits(self, x: Array) -> Array:
        """[t, d] -> [t, V]."""
        c, w = self.config, self._w
        if c.final_norm:
            x = self._norm("final_norm", x)  # [t, d]
        if c.d_embed:
            x = x @ w["embed.proj_out"].T  # [t, E]
        logits = x @ w["embed.weight" if c.tied_head else "head.weight"].T  # [t, V]
        if "head" in c.biases:
            logits = logits + w["head.bias"]  # [t, V]
        return softcap(logits, c.logit_softcap)  # [t, V]

    def _linear(self, name: str, x: Array) -> Array:
        """[t, in] -> [t, out]."""
        y: Array = x @ self._w[name + ".weight"].T  # [t, out]
        return y + self._w[name + ".bias"] if name.rpartition(".")[2] in self.config.biases else y

    def _norm(self, name: str, x: Array) -> Array:
        """[t, d] -> [t, d]."""
        if self.config.norm == "rms":
            return rms_norm(x, self._w[name + ".weight"], self.config.norm_eps)
        return layer_norm(x, self._w[name + ".weight"], self._w[name + ".bias"], self.config.norm_eps)


def _read(name: str, weights: Weights, codec: Codec) -> Array:
    """A tensor, rounded as `codec` stores it: in rows of length d_model (head: embed_dim)."""
    values = weights.read(name)
    if not np.isfinite(values).all():
        raise NumericsError(f"{name} holds NaN or infinity", fix="fetch or export the model again")
    part = ".".join(name.split(".")[-2:])
    if name in ("embed.weight", "head.weight"):
        return roundtrip(embed_codec(codec), values)
    if part in _ROWS:
        return roundtrip(codec, values)
    if part in _COLUMNS:
        return np.ascontiguousarray(roundtrip(codec, values.T).T)
    return values
