"""`NativeExecutor`: the C++ engine behind the `Executor` protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from dejavu.codecs import embed_codec
from dejavu.engine.core import chosen_isa, load_core
from dejavu.engine.lowering import lower
from dejavu.engine.packed import VERSION, Packed, pack_in_memory, read_packed, write_packed
from dejavu.engine.touched import added_bytes, dense_bytes, expected_density, plan_bytes
from dejavu.environment import physical_cores, usable_cpus
from dejavu.errors import InputError, PlanError, SourceError, UnsupportedModelError
from dejavu.executor import KV_DTYPES, TRACE_FIELDS, Trace
from dejavu.models import rope
from dejavu.models.alibi import alibi_slopes
from dejavu.models.loading import lineage, open_model
from dejavu.models.packs import note_source
from dejavu.models.store import packed_folder
from dejavu.nested import check_cut
from dejavu.refinement import refine

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from dejavu.codecs import Codec
    from dejavu.executor import TraceField
    from dejavu.models.config import ModelConfig
    from dejavu.models.progress import Progress
    from dejavu.plan import AccessPlan


class NativeExecutor:
    """Runs a packed model on all physical cores. See `dejavu.executor.Executor`."""

    def __init__(self, packed: Packed, *, kv_dtype: str = "f16", threads: int | None = None) -> None:
        self.config = packed.config
        self.packed = packed
        self.kv_dtype = kv_dtype
        self.threads, self.isa = _machine(kv_dtype, threads)
        self._plan: AccessPlan | None = None
        self._engine: Any = load_core().Engine(
            _engine_config(packed.config),
            packed.codec,
            embed_codec(packed.codec),
            packed.buffer,
            packed.places,
            packed.leading,
            self.threads,
            self.isa,
        )

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        codec: Codec,
        leading: int = 0,
        kv_dtype: str = "f16",
        threads: int | None = None,
        cache: bool = True,
        progress: Progress | None = None,
    ) -> NativeExecutor:
        """Open the model at `path` (GGUF file or Hugging Face folder), packing it where no packed file exists.

        Args:
            path: what `dejavu.models.sources.resolve` returned.
            codec: how the linears are stored.
            leading: bits to store apart, as plans with sketches need them (`AccessPlan.leading`).
            kv_dtype: how keys and values are stored.
            threads: default: one per physical core.
            cache: keep the packed weights in the cache folder and map them; otherwise pack into memory.
            progress: told of packing.

        Raises:
            InputError: an option is out of range, or rows of the codec cannot be cut behind so many bits.
            ModelFormatError, UnsupportedModelError, NumericsError: the model cannot be used.
            CacheError: the packed file cannot be written.
        """
        threads, _ = _machine(kv_dtype, threads)  # refused before anything is packed
        check_cut(codec, leading)
        target = packed_path(path, codec, leading=leading)
        packed = read_packed(target) if cache else None
        if packed is None:
            model = open_model(path)
            try:
                config, weights = refine(model.config, model.weights, codec)
                if cache:
                    write_packed(target, config, weights, codec, threads, progress, leading=leading)
                    packed = read_packed(target)
                if packed is None:
                    packed = pack_in_memory(config, weights, codec, threads, progress, leading=leading)
            finally:
                model.weights.close()
        if cache:
            note_source(path)
        return cls(packed, kv_dtype=kv_dtype, threads=threads)

    def new_cache(self) -> Any:
        """An empty KV cache for one sequence."""
        return self._engine.new_cache(self.kv_dtype)

    def set_plan(self, plan: AccessPlan | None) -> None:
        """Decode by `plan` from now on; None: dense. Caches may be kept.

        Raises:
            PlanError: the plan is for another model, reads leading bits that lie among the others here, or has numbers
                that cannot be stored. The plan before it stays.
        """
        if plan is None:
            self._engine.set_plan(None)
        else:
            plan.check_fits(self.config, self.packed.fingerprint)
            plan.check_codec(self.packed.codec)
            if not plan.can_read(self.packed.leading):
                raise PlanError(
                    f"the plan reads {plan.leading} leading bits of weights apart, and the model is packed with "
                    f"{self.packed.leading or 'none'} of them apart",
                    fix=f"load it with leading={plan.leading} and codec int8{' or int4' * (plan.leading == 4)}",
                )
            try:
                self._engine.set_plan(lower(plan, self.config, self.threads))
            except ValueError as error:
                raise PlanError(f"the plan cannot be run: {error}", fix="train it again") from error
        self._plan = plan

    @property
    def last_stats(self) -> dict[str, Any]:
        """What ran under the plan since it was set or `reset_stats` was called.

        tokens; neurons, heads: mean density per layer; recomputed: keys and values computed late; decoded: tokens
        decoded one by one, by the plan or dense; ms: of such a token, by part (predicting: scoring and picking; rest:
        embedding, norms and sums; waiting: for other threads); predictor_share: of that time, in predicting.
        """
        counters = self._engine.counters()
        tokens = max(counters["tokens"], 1)
        ms = {part: 1e3 * s / max(counters["decoded"], 1) for part, s in counters["seconds"].items()}
        return {
            "tokens": counters["tokens"],
            "neurons": [n / (tokens * self.config.base_neurons) for n in counters["neurons"]],
            "heads": [n / (tokens * self.config.n_heads) for n in counters["heads"]],
            "recomputed": counters["recomputed"],
            "decoded": counters["decoded"],
            "ms": ms,
            "predictor_share": ms["predicting"] / (sum(ms.values()) or 1.0),
        }

    def reset_stats(self) -> None:
        """Set the counters behind `last_stats` to zero."""
        self._engine.reset_counters()

    def prefill(
        self, tokens: NDArray[np.int32], cache: Any, *, all_logits: bool = False, sparse: bool = False
    ) -> NDArray[np.float32]:
        """Append `tokens` [t] to `cache`; logits float32 [1, vocab] of the last, or [t, vocab] of all."""
        logits = np.empty((len(tokens) if all_logits else 1, self.config.vocab_size), np.float32)
        tokens = np.ascontiguousarray(tokens, np.int32)
        with _input_errors():
            if len(tokens) == 1:
                self._engine.decode(tokens, [cache], sparse, logits)
            else:
                which = "all" if all_logits else "last"
                self._engine.forward(tokens, [cache], [len(tokens)], sparse, which, logits)
        return logits

    def prefill_batch(
        self,
        tokens: Sequence[NDArray[np.int32]],
        caches: Sequence[Any],
        *,
        all_logits: bool = False,
        sparse: bool = False,
    ) -> NDArray[np.float32]:
        """Append `tokens[i]` to `caches[i]`; logits float32 [b, vocab] or [all tokens, vocab]. Weights are read once."""
        if not tokens:
            raise InputError("there are no tokens to run")
        joined = np.ascontiguousarray(np.concatenate([*tokens]), np.int32)
        logits = np.empty((len(joined) if all_logits else len(tokens), self.config.vocab_size), np.float32)
        counts, which = [len(part) for part in tokens], "all" if all_logits else "last"
        with _input_errors():
            self._engine.forward(joined, list(caches), counts, sparse, which, logits)
        return logits

    def decode(self, tokens: NDArray[np.int32], caches: Sequence[Any]) -> NDArray[np.float32]:
        """Append one token to each of b caches; logits float32 [b, vocab]. Weights are read once for all."""
        logits = np.empty((len(tokens), self.config.vocab_size), np.float32)
        with _input_errors():
            self._engine.decode(np.ascontiguousarray(tokens, np.int32), list(caches), True, logits)
        return logits

    def step(
        self, tokens: NDArray[np.int32], cache: Any, logits: NDArray[np.float32], *, sparse: bool
    ) -> None:
        """Append one token [1] by the plan or dense; `logits` [1, vocab] is filled."""
        with _input_errors():
            self._engine.decode(tokens, [cache], sparse, logits)

    def part_seconds(self) -> tuple[NDArray[np.float64], float, float]:
        """Of decoded tokens since `reset_stats`, mean: the MLP of each layer [L], scoring included; the head; all else."""
        counters = self._engine.counters()
        mlps, head = np.array(counters["mlp_seconds"]), counters["seconds"]["head"]
        rest = sum(counters["seconds"].values()) - float(mlps.sum()) - head
        decoded = max(counters["decoded"], 1)
        return mlps / decoded, head / decoded, rest / decoded

    def trace(self, *sequences: NDArray[np.int32], want: Collection[TraceField] = TRACE_FIELDS) -> Trace:
        """Run each of `sequences` from its beginning, and return what `want` names. See `Trace` for shapes.

        Raises:
            InputError: "chosen" is wanted, and no plan is set; there are no sequences; or as all methods.
        """
        c = self.config
        if "chosen" in want and self._plan is None:
            raise InputError("no plan is set that could choose")
        if not sequences:
            raise InputError("there are no tokens to run")
        widths = {
            "attn_input": c.d_model,
            "mlp_input": c.d_model,
            "gate": c.d_ff,
            "hidden": c.d_ff,
            "head_norm": c.n_heads,
            "chosen": c.d_ff,
        }
        tokens = np.ascontiguousarray(np.concatenate([*sequences]), np.int32)
        arrays = {
            name: np.empty((c.n_layers, len(tokens) if name in want else 0, width), np.float32)
            for name, width in widths.items()
        }
        arrays["head_input"] = np.empty(
            (1, len(tokens) if "head_input" in want else 0, c.embed_dim), np.float32
        )
        logits = np.empty((len(tokens) if "logits" in want else 0, c.vocab_size), np.float32)
        caches, counts = [self.new_cache() for _ in sequences], [len(sequence) for sequence in sequences]
        with _input_errors():
            self._engine.trace(tokens, caches, counts, arrays, logits, "chosen" in want)
        for name in ("gate", "hidden", "chosen"):
            arrays[name] = arrays[name][:, :, : c.base_neurons]
        return Trace(**arrays | {"head_input": arrays["head_input"][0]}, logits=logits)

    def touched_bytes(self, context: int) -> dict[str, int]:
        """Bytes that one decoded token reads, by part, with `context` tokens in the cache.

        Under a plan: at the mean densities since it was set; before anything ran, at those that its selectors say.
        The embedding's one row, norms and biases are left out.
        """
        c, plan = self.config, self._plan
        if plan is None:
            return self.dense_bytes(context)
        stats = self.last_stats
        if stats["tokens"]:
            neurons, heads = stats["neurons"], stats["heads"]
        else:
            neurons = [expected_density(layer.neurons, c.base_neurons) for layer in plan.layers]
            heads = [expected_density(layer.heads, c.n_heads) for layer in plan.layers]
        # A K/V head is read if any of its query heads is selected: at most.
        group = c.n_heads // c.n_kv_heads
        cached = self._cached(context, [min(group * density, 1.0) for density in heads])
        return {**plan_bytes(self.packed, plan, neurons, heads), "kv": cached}

    def dense_bytes(self, context: int) -> dict[str, int]:
        """As `touched_bytes`, without a plan."""
        return {**dense_bytes(self.packed), "kv": self._cached(context, [1.0] * self.config.n_layers)}

    def _cached(self, context: int, shares: Sequence[float]) -> int:
        """Bytes of K and V that a token reads: of each layer this share of the heads, and of the positions its window."""
        c = self.config
        one = kv_bytes_per_token(c, self.kv_dtype) // c.n_layers
        seen = (min(context, c.sliding_window) if c.windowed(i) else context for i in range(c.n_layers))
        return round(one * sum(share * n for share, n in zip(shares, seen, strict=True)))

    @property
    def plan_nbytes(self) -> int:
        """Bytes of memory that the plan takes beside the packed weights; dense: 0."""
        return 0 if self._plan is None else added_bytes(self.packed, self._plan)

    def close(self) -> None:
        """Stop the threads and let go of the weights."""
        self._engine = None
        self.packed = dataclasses.replace(self.packed, buffer=np.empty(0, np.uint8))


def default_threads() -> int:
    """One thread per physical core that this process may use: decoding is limited by memory, not by threads."""
    return physical_cores(usable_cpus())


@contextlib.contextmanager
def _input_errors() -> Iterator[None]:
    """What the core says of tokens and sequences that do not fit, as `InputError`."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error


def _machine(kv_dtype: str, threads: int | None) -> tuple[int, str]:
    """How many threads run, and which instruction set. Raises `InputError` for options that cannot be."""
    if kv_dtype not in KV_DTYPES:
        raise InputError(f"KV type {kv_dtype!r} is unknown; there are: {', '.join(KV_DTYPES)}")
    threads = default_threads() if threads is None else threads
    if not 1 <= threads <= 1024:
        raise InputError(f"threads is {threads}; from 1 to 1024 are possible")
    return threads, chosen_isa()


def kv_bytes_per_token(config: ModelConfig, kv_dtype: str) -> int:
    """Bytes of K and V of one position in all layers (int8: with its float32 scales)."""
    vector = config.head_dim * {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}[kv_dtype] + 4 * (kv_dtype == "int8")
    return 2 * config.n_layers * config.n_kv_heads * vector


def packed_path(path: Path, codec: str, *, leading: int = 0) -> Path:
    """Where the packed form of the model at `path` lies in the cache folder.

    The name depends on the sizes and times of the model's files, and of its base's where it is a change of one, so that a
    changed model is packed again without reading it.

    Raises:
        SourceError: the model's files cannot be looked at.
        ModelFormatError, UnsupportedModelError: what says which model is the base is damaged or unknown.
    """
    facts = [fact for place in lineage(path) for fact in _facts(place)]
    key = hashlib.sha256(json.dumps([VERSION, facts]).encode()).hexdigest()[:12]
    return packed_folder(path) / f"{codec}{f'-leading{leading}' if leading else ''}-{key}.dejavu"


def _facts(path: Path) -> list[tuple[str, int, int]]:
    """Names, bytes and times in ns of the files of the model at `path`."""
    try:
        files = (
            sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors"))
            if path.is_dir()
            else [path]
        )
        return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    except OSError as error:
        raise SourceError(
            f"cannot read {path}: {error.strerror or error}", fix="check the model's path and its permissions"
        ) from error


def break_even_path(path: Path) -> Path:
    """Where it is remembered which plans pay for the model at `path`."""
    return packed_folder(path) / "break-even.json"


def _engine_config(config: ModelConfig) -> dict[str, object]:
    """The fields of csrc/config.h."""
    uses_rope = config.position == "rope"
    local = uses_rope and config.rope_local_theta > 0
    dynamic = uses_rope and rope.depends_on_length(config)
    if dynamic and config.rope_scaling.freq_factors:
        raise UnsupportedModelError("dynamic RoPE scaling together with frequency factors is not supported")
    return {
        "vocab": config.vocab_size,
        "d": config.d_model,
        "layers": config.n_layers,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "ff": config.d_ff,
        "refined": config.refined,
        "max_context": config.max_context,
        "embed_dim": config.embed_dim,
        "activation": config.activation,
        "activation_threshold": config.activation_threshold,
        "gated": config.gated,
        "rms": config.norm == "rms",
        "pre_norm": config.pre_norm,
        "parallel_residual": config.parallel_residual,
        "post_norms": config.post_norms,
        "final_norm": config.final_norm,
        "embed_norm": config.embed_norm,
        "qk_norm": config.qk_norm,
        "norm_eps": config.norm_eps,
        "embed_scale": config.embed_scale,
        "scale": config.scale,
        "attn_softcap": config.attn_softcap,
        "logit_softcap": config.logit_softcap,
        "window": config.sliding_window,
        "windowed": [config.windowed(i) for i in range(config.n_layers)],
        "position": config.position,
        "position_offset": config.position_offset,
        "rope_dim": config.rope_dim if uses_rope else 0,
        "rope_attention_factor": rope.attention_factor(config) if uses_rope else 1.0,
        "inv_freq": rope.frequencies(config).tolist() if uses_rope else [],
        "local_inv_freq": rope.frequencies(config, local=True).tolist() if local else [],
        "dynamic_context": config.rope_scaling.original_context if dynamic else 0,
        "dynamic_factor": config.rope_scaling.factor,
        "rope_theta": config.rope_theta,
        "alibi_slopes": alibi_slopes(config.n_heads).tolist() if config.position == "alibi" else [],
    }
