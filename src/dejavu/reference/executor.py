"""`ReferenceExecutor`: one decoder for all families, in NumPy float32.

Shapes: t tokens, d = d_model, E = embed_dim, H heads, K K/V heads, e = head_dim, f = d_ff, V = vocab_size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from dejavu.codecs import CODECS, Codec, encode
from dejavu.errors import InputError
from dejavu.executor import KV_DTYPES, TRACE_FIELDS, KvDtype, Trace, TraceField
from dejavu.models.alibi import alibi_slopes
from dejavu.models.rope import is_local, tables
from dejavu.nested import estimate
from dejavu.plan import Dense, LowRank, Oracle, Products, Random, Sketch, Static, Threshold, VocabularySketch
from dejavu.reference import selection
from dejavu.reference.cache import ReferenceCache
from dejavu.reference.ops import activate, attention, gated, layer_norm, rms_norm, rotate, softcap
from dejavu.reference.run import Run
from dejavu.reference.tensors import Tensors

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from dejavu.executor import Cache
    from dejavu.models.config import ModelConfig
    from dejavu.models.weights import Weights
    from dejavu.plan import AccessPlan, HeadSelector, NeuronSelector

    Array = NDArray[np.float32]
    Mask = NDArray[np.bool_]


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
        self.fingerprint = weights.fingerprint
        self._kv_dtype = kv_dtype
        self._slopes = alibi_slopes(config.n_heads) if config.position == "alibi" else None  # [H]
        self.codec = codec
        self._w = Tensors(config, weights, codec)
        self._plan: AccessPlan | None = None
        self._stats: dict[str, Any] = {}
        self._counted = 0  # tokens behind the statistics
        weights.release()

    def new_cache(self) -> ReferenceCache:
        """An empty cache."""
        return ReferenceCache(self.config, self._kv_dtype)

    def set_plan(self, plan: AccessPlan | None) -> None:
        """Decode by `plan` from now on; None: dense. Raises `PlanError` if it does not fit."""
        if plan is not None:
            plan.check_fits(self.config, self.fingerprint)
            plan.check_codec(self.codec)
        self._w.forget_leading()
        self._plan, self._stats, self._counted = plan, {}, 0

    @property
    def last_stats(self) -> dict[str, Any]:
        """Since the plan was set: "neurons" and "heads", mean density per layer (lists of L floats)."""
        return self._stats

    def prefill(
        self, tokens: NDArray[np.int32], cache: Cache, *, all_logits: bool = False, sparse: bool = False
    ) -> Array:
        """Append `tokens` [t]; logits after the last one [1, V] or after each [t, V].

        `sparse`: each token selects for itself, as in `decode`; keys and values are all written.
        """
        run = self._start(tokens, cache, self._plan if sparse else None)
        x = self._forward(tokens, run)  # [t, d]
        self._note_stats([run])
        return self._logits(self._head_input(x if all_logits else x[-1:]), run)  # [t or 1, V]

    def prefill_batch(
        self,
        tokens: Sequence[NDArray[np.int32]],
        caches: Sequence[Cache],
        *,
        all_logits: bool = False,
        sparse: bool = False,
    ) -> Array:
        """`prefill` of one sequence after another; logits [b, V] or [all tokens, V]."""
        if len(tokens) != len(caches) or not len(tokens):
            raise InputError(f"{len(tokens)} pieces for {len(caches)} sequences")
        pairs = zip(tokens, caches, strict=True)
        return np.concatenate([self.prefill(t, c, all_logits=all_logits, sparse=sparse) for t, c in pairs])

    def decode(self, tokens: NDArray[np.int32], caches: Sequence[Cache]) -> Array:
        """Append one token to each of b sequences: `tokens` [b] -> logits [b, V]."""
        if len(tokens) != len(caches) or not len(tokens):
            raise InputError(f"{len(tokens)} tokens for {len(caches)} sequences")
        runs, logits = [], []
        for i, cache in enumerate(caches):
            run = self._start(tokens[i : i + 1], cache, self._plan)
            run.write = self._plan is None or self._plan.kv.kind == "write"
            x = self._head_input(self._forward(tokens[i : i + 1], run))  # [1, E]
            logits.append(self._logits(x, run))  # [1, V]
            runs.append(run)
        self._note_stats(runs)
        return np.concatenate(logits)  # [b, V]

    def trace(self, *sequences: NDArray[np.int32], want: Collection[TraceField] = TRACE_FIELDS) -> Trace:
        """Run each of `sequences` from its beginning: see `Executor.trace`. Fields not in `want` come with t = 0."""
        if "chosen" in want and self._plan is None:
            raise InputError("no plan is set that could choose")
        if not sequences:
            raise InputError("there are no tokens to run")
        found = [self._trace(tokens, want) for tokens in sequences]
        tokens_axis = {"head_input": 0, "logits": 0}  # all others: [L, t, ...]
        return Trace(
            **{
                name: np.concatenate([each[name] for each in found], axis=tokens_axis.get(name, 1))
                for name in found[0]
            }
        )

    def _trace(self, tokens: NDArray[np.int32], want: Collection[TraceField]) -> dict[str, Array]:
        """The fields of a `Trace` of one sequence `tokens` [t]."""
        c = self.config
        run = self._start(tokens, self.new_cache(), self._plan if "chosen" in want else None)
        run.trace = {}
        x = self._head_input(self._forward(tokens, run))  # [t, E]
        logits = self._logits(x, run)  # [t, V]
        layers = run.trace | {"attn_input": run.attn_input, "mlp_input": run.mlp_input}  # L of [t, ...] each
        t: dict[str, int] = {name: len(tokens) if name in want else 0 for name in get_args(TraceField)}
        stacked = {name: np.stack([x[: t[name]] for x in parts]) for name, parts in layers.items()}
        for name in ("gate", "hidden", "chosen"):
            stacked[name] = stacked[name][..., : c.base_neurons]  # [L, t, base]
        return stacked | {"head_input": x[: t["head_input"]], "logits": logits[: t["logits"]]}

    def close(self) -> None:
        """Drop the weights."""
        self._w.clear()

    def _start(self, tokens: NDArray[np.int32], cache: Cache, plan: AccessPlan | None) -> Run:
        """Check `tokens` [t] and the room for them."""
        c, mine = self.config, cast("ReferenceCache", cache)
        start, stop = mine.length, mine.length + len(tokens)
        if not len(tokens):
            raise InputError("there are no tokens to run")
        if tokens.min() < 0 or tokens.max() >= c.vocab_size:
            raise InputError(f"a token id is outside the vocabulary of {c.vocab_size}")
        if stop > c.max_context:
            raise InputError(f"{stop} tokens exceed the context of {c.max_context}")
        mine.truncate(start)  # what an interrupted call wrote does not count
        return Run(np.arange(start, stop), mine, plan)

    def _note_stats(self, runs: Sequence[Run]) -> None:
        """Bring the mean densities per layer up to date."""
        for run in runs:
            if run.plan is not None:
                before, now = self._counted, len(run.positions)
                for name, densities in (("neurons", run.neurons), ("heads", run.heads)):
                    known = np.asarray(self._stats.get(name, densities))  # [L]
                    mean = (before * known + now * np.asarray(densities)) / (before + now)
                    self._stats[name] = mean.tolist()
                self._counted = before + now

    def _forward(self, tokens: NDArray[np.int32], run: Run) -> Array:
        """Hidden states after the last layer, [t, d]; the cache grows by t."""
        c, w = self.config, self._w
        x: Array = w["embed.weight"][tokens] * np.float32(c.embed_scale)  # [t, E]
        if c.d_embed:
            x = x @ w["embed.proj_in"].T  # [t, d]
        if c.position == "learned":
            x = x + w["embed.position"][run.positions + c.position_offset]  # [t, d]
        if c.embed_norm:
            x = self._norm("embed.norm", x)  # [t, d]
        for i in range(c.n_layers):
            x = self._layer(i, x, run)  # [t, d]
        run.cache.length += len(tokens)
        return x

    def _layer(self, i: int, x: Array, run: Run) -> Array:
        """One layer, [t, d] -> [t, d]."""
        c, p = self.config, f"layers.{i}."
        run.attn_input.append(x)
        if not c.pre_norm:
            x = self._norm(p + "attn_norm", x + self._attention(i, x, run))  # [t, d]
            run.mlp_input.append(x)
            return self._norm(p + "mlp_norm", x + self._mlp(i, x, run))  # [t, d]
        branch = self._attention(i, self._norm(p + "attn_norm", x), run)  # [t, d]
        if c.post_norms:
            branch = self._norm(p + "attn_post_norm", branch)  # [t, d]
        after = x + branch  # [t, d]
        run.mlp_input.append(x if c.parallel_residual else after)
        branch = self._mlp(i, self._norm(p + "mlp_norm", run.mlp_input[i]), run)  # [t, d]
        if c.post_norms:
            branch = self._norm(p + "mlp_post_norm", branch)  # [t, d]
        return after + branch  # [t, d]

    def _attention(self, i: int, x: Array, run: Run) -> Array:
        """The heads of a layer, [t, d] -> [t, d]."""
        c, p, t = self.config, f"layers.{i}.", len(x)
        selector = run.plan.layers[i].heads if run.plan else Dense()
        chosen = self._choose_heads(i, selector, run)  # [t, H]; None: known once all are computed
        self._fill_cache(i, x, None if run.write else chosen, run)
        q = self._linear(p + "q", x).reshape(t, c.n_heads, c.head_dim)  # [t, H, e]
        if c.qk_norm:
            q = rms_norm(q, self._w[p + "q_norm.weight"], c.norm_eps)  # [t, H, e]
        stop = run.cache.length + t
        if c.position == "rope":
            q = rotate(q, *tables(c, run.positions, local=is_local(c, i), length=stop))  # [t, H, e]
        keys, values = run.cache.get(i, stop)  # [n, K, e], n = start + t
        window = c.sliding_window if c.windowed(i) else 0
        mixed = attention(
            q, keys, values, scale=c.scale, window=window, cap=c.attn_softcap, slopes=self._slopes
        )  # [t, H, e]
        run.note("head_norm", selection.head_norms(mixed))
        if isinstance(selector, Oracle):
            chosen = selection.pick(selection.head_norms(mixed), selector)  # [t, H]
        if chosen is not None:
            mixed = np.where(chosen[:, :, None], mixed, np.float32(0))  # [t, H, e]
        run.heads.append(1.0 if chosen is None else float(chosen.mean()))
        return self._linear(p + "o", mixed.reshape(t, -1))  # [t, d]

    def _choose_heads(self, i: int, selector: HeadSelector, run: Run) -> Mask | None:
        """[t, H]; None: all of them, or (oracle) to be chosen after they are computed."""
        n = self.config.n_heads
        if isinstance(selector, Static):
            return selection.always(selector.indices, len(run.positions), n)  # [t, H]
        if isinstance(selector, Random):
            layer = i + selection.HEADS_OF_LAYER
            return selection.pick(selection.random_scores(selector, layer, run.positions, n), selector)
        if isinstance(selector, LowRank):
            y = self._ahead("attn_norm", i, selector.lookahead, run.attn_input)  # [t, d]
            return selection.pick(selection.low_rank_scores(selector, y), selector)  # [t, H]
        return None

    def _fill_cache(self, i: int, x: Array, chosen: Mask | None, run: Run) -> None:
        """Write keys and values for the inputs x [t, d], and those that are still missing.

        With `chosen` [1, H], a group without a chosen head waits: until one is, or until `buffer` positions are missing,
        this one included.
        """
        c, cache, start = self.config, run.cache, run.cache.length
        due = np.ones(c.n_kv_heads, np.bool_)  # [K]
        if chosen is not None and run.plan is not None:
            missing = start + 1 - cache.filled(i)  # [K]
            due = chosen.reshape(c.n_kv_heads, -1).any(axis=1) | (missing >= run.plan.kv.buffer)  # [K]
        for position in range(int(cache.filled(i)[due].min(initial=start)), start):
            late = due & (cache.filled(i) == position)  # [K]
            k, v = self._keys_values(i, cache.kept_input(i, position)[None], np.array([position]))
            cache.put(i, position, k, v, late)
        if not due.all():
            cache.keep_input(i, start, x[0])
        k, v = self._keys_values(i, x, run.positions)  # [t, K, e]
        cache.put(i, start, k, v, due)

    def _keys_values(self, i: int, x: Array, positions: NDArray[np.int64]) -> tuple[Array, Array]:
        """Keys and values at `positions` [t] from the block's input x [t, d], each [t, K, e]."""
        c, p = self.config, f"layers.{i}."
        k = self._linear(p + "k", x).reshape(len(x), c.n_kv_heads, c.head_dim)  # [t, K, e]
        v = self._linear(p + "v", x).reshape(len(x), c.n_kv_heads, c.head_dim)  # [t, K, e]
        if c.qk_norm:
            k = rms_norm(k, self._w[p + "k_norm.weight"], c.norm_eps)  # [t, K, e]
        if c.position == "rope":
            length = int(positions[-1]) + 1
            k = rotate(k, *tables(c, positions, local=is_local(c, i), length=length))  # [t, K, e]
        return k, v

    def _mlp(self, i: int, x: Array, run: Run) -> Array:
        """The neurons of a layer, [t, d] -> [t, d]."""
        c, p = self.config, f"layers.{i}."
        hidden = gate = self._gate(p, x)  # [t, f]
        if c.gated:
            hidden = gated(gate, self._linear(p + "up", x), c.activation)  # [t, f]
        selector = run.plan.layers[i].neurons if run.plan else Dense()
        if isinstance(selector, Sketch) and selector.values == "leading":
            own = c.base_neurons  # refined copies, behind them, are exact
            gate[:, :own], hidden[:, :own] = self._leading_values(p, x, selector.bits)
        run.note("gate", gate)
        run.note("hidden", hidden)
        if run.plan is None:
            run.note("chosen", hidden[:0])
            return self._linear(p + "down", hidden)  # [t, d]
        layer = run.plan.layers[i]
        chosen = self._choose_neurons(i, layer.neurons, gate, hidden, run)  # [t, f]
        run.note("chosen", chosen.astype(np.float32))
        out = self._linear(p + "down", np.where(chosen, hidden, np.float32(0)))  # [t, d]
        if layer.compensator is not None:
            stand_in = layer.compensator
            out = out + (stand_in.bias + x @ stand_in.a.T @ stand_in.b.T)  # [t, d]
        return out

    def _gate(self, p: str, x: Array) -> Array:
        """act(g), ungated act(u): [t, d] -> [t, f]."""
        c = self.config
        return activate(
            self._linear(p + ("gate" if c.gated else "up"), x), c.activation, c.activation_threshold
        )

    def _leading_values(self, p: str, x: Array, bits: int) -> tuple[Array, Array]:
        """`_gate` and the hidden values by the leading bits of gate and up: [t, d] -> two of [t, base]."""
        c = self.config
        up = self._linear(p + "up", x, bits=bits)[:, : c.base_neurons]
        first = self._linear(p + "gate", x, bits=bits)[:, : c.base_neurons] if c.gated else up
        gate = activate(first, c.activation, c.activation_threshold)
        return gate, gated(gate, up, c.activation) if c.gated else gate

    def _choose_neurons(self, i: int, selector: NeuronSelector, gate: Array, hidden: Array, run: Run) -> Mask:
        """[t, f]; refined copies, the last ones, are always chosen."""
        n, t = self.config.base_neurons, len(hidden)
        chosen = np.ones(hidden.shape, np.bool_)  # [t, f]
        if isinstance(selector, Static):
            chosen[:, :n] = selection.always(selector.indices, t, n)
        elif isinstance(selector, Random):
            chosen[:, :n] = selection.pick(selection.random_scores(selector, i, run.positions, n), selector)
        elif isinstance(selector, Oracle):
            chosen[:, :n] = selection.pick(np.abs(hidden[:, :n]), selector)
        elif isinstance(selector, Threshold):
            chosen[:, :n] = selection.pick(np.abs(gate[:, :n]), selector)
        elif isinstance(selector, LowRank):
            y = self._ahead("mlp_norm", i, selector.lookahead, run.mlp_input)  # [t, d]
            chosen[:, :n] = selection.pick(selection.low_rank_scores(selector, y), selector)
        elif isinstance(selector, Products):
            y = self._ahead("mlp_norm", i, selector.lookahead, run.mlp_input)  # [t, d]
            chosen[:, :n] = selection.pick(selection.products_scores(selector, y, self.config), selector)
        elif isinstance(selector, Sketch):
            y = self._ahead("mlp_norm", i, selector.lookahead, run.mlp_input)  # [t, d]
            chosen[:, :n] = selection.pick(self._sketch(i, selector, y), selector)
        run.neurons.append(float(chosen[:, :n].mean()))
        return chosen

    def _sketch(self, i: int, selector: Sketch, y: Array) -> Array:
        """Scores of the model's own neurons: y [t, d] -> [t, base]."""
        c, p = self.config, f"layers.{i}."
        up = self._linear(p + "up", y, bits=selector.bits)[:, : c.base_neurons]  # [t, base]
        gate = self._linear(p + "gate", y, bits=selector.bits)[:, : c.base_neurons] if c.gated else None
        return selection.sketch_scores(gate, up, c)  # [t, base]

    def _ahead(self, norm: str, i: int, distance: int, inputs: Sequence[Array]) -> Array:
        """What a selector reads: layer i's norm of what enters the block `distance` layers before, [t, d]."""
        x = inputs[i - min(distance, i)]  # [t, d]
        return self._norm(f"layers.{i}.{norm}", x) if self.config.pre_norm else x  # [t, d]

    def _head_input(self, x: Array) -> Array:
        """What the head multiplies: [t, d] -> [t, E]."""
        if self.config.final_norm:
            x = self._norm("final_norm", x)  # [t, d]
        return x @ self._w["embed.proj_out"].T if self.config.d_embed else x

    def _logits(self, x: Array, run: Run) -> Array:
        """[t, E] -> [t, V]."""
        c, w = self.config, self._w
        name = "embed.weight" if c.tied_head else "head.weight"
        bias = w["head.bias"] if "head" in c.biases else np.float32(0)  # [V]
        logits = x @ w[name].T + bias  # [t, V]
        if run.plan is not None and isinstance(run.plan.vocabulary, VocabularySketch):
            sketch = run.plan.vocabulary
            leading = w.leading(name, sketch.bits)  # [V, E]
            rough = x @ leading.T + bias  # [t, V]
            if len(sketch.mean):
                rough += (w[name] - leading) @ sketch.mean
            if len(sketch.directions):
                apart = x - sketch.mean if len(sketch.mean) else x  # [t, E]
                missing = estimate(encode("int8", sketch.missing), 4)  # [V, J]
                rough += apart @ sketch.directions.T @ missing.T
            logits = np.where(selection.highest(rough, sketch.exact), logits, rough)  # [t, V]
        return softcap(logits, c.logit_softcap)  # [t, V]

    def _linear(self, name: str, x: Array, *, bits: int | None = None) -> Array:
        """[t, in] -> [t, out]; with `bits`, by the leading bits of the weights."""
        weight = self._w[name + ".weight"] if bits is None else self._w.leading(name + ".weight", bits)
        y: Array = x @ weight.T  # [t, out]
        return y + self._w[name + ".bias"] if name.rpartition(".")[2] in self.config.biases else y

    def _norm(self, name: str, x: Array) -> Array:
        """[t, d] -> [t, d]."""
        if self.config.norm == "rms":
            return rms_norm(x, self._w[name + ".weight"], self.config.norm_eps)
        return layer_norm(x, self._w[name + ".weight"], self._w[name + ".bias"], self.config.norm_eps)
