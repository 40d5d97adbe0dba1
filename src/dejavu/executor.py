"""What an executor is: the contract between the generation loop and the reference and native engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dejavu.models.config import ModelConfig
    from dejavu.plan import AccessPlan

KvDtype = Literal["f32", "f16", "bf16", "int8"]
KV_DTYPES: tuple[KvDtype, ...] = get_args(KvDtype)
"""How cached keys (after RoPE) and values are rounded when they are written.

int8: per position and K/V head ``scale = max|x| / 127`` in float32, ``code = rint(x / scale)``.
"""


class Cache(Protocol):
    """Keys and values of one sequence."""

    @property
    def length(self) -> int:
        """Tokens held."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises `InputError` if there are fewer."""

    def fork(self) -> Cache:
        """An independent cache that starts out with the same tokens."""


@dataclass(frozen=True, eq=False)
class Trace:
    """What sequences of t tokens together do inside the model, float32, one after the other in every field.

    Fields that were not wanted have t = 0.

    L layers, d = d_model, f = base_neurons (no refined copies), H heads, V = vocab_size.
    """

    attn_input: NDArray[np.float32]
    """[L, t, d]: the residual stream entering the attention block, before its norm."""
    mlp_input: NDArray[np.float32]
    """[L, t, d]: the residual stream entering the MLP, before its norm."""
    gate: NDArray[np.float32]
    """[L, t, f]: act(g); ungated: as `hidden`."""
    hidden: NDArray[np.float32]
    """[L, t, f]: act(g) * u; ungated: act(u)."""
    head_norm: NDArray[np.float32]
    """[L, t, H]: L2 norm of each head's mixed values, before the output rows."""
    chosen: NDArray[np.float32]
    """[L, t, f]: by the plan, 1 where a token uses a neuron, else 0. Of `hidden`, which is that of all neurons."""
    head_input: NDArray[np.float32]
    """[t, E]: what the head multiplies, E = embed_dim."""
    logits: NDArray[np.float32]
    """[t, V]"""


TraceField = Literal[
    "attn_input", "mlp_input", "gate", "hidden", "head_norm", "chosen", "head_input", "logits"
]
TRACE_FIELDS: tuple[TraceField, ...] = tuple(name for name in get_args(TraceField) if name != "chosen")
"""All that a dense pass can tell."""


class Executor(Protocol):
    """Runs one model. Token ids are int32, logits float32.

    Methods raise `InputError` for token ids outside the vocabulary, for no tokens at all, and for sequences
    beyond the model's context.
    """

    @property
    def config(self) -> ModelConfig:
        """The model."""

    def new_cache(self) -> Cache:
        """An empty cache."""

    def set_plan(self, plan: AccessPlan | None) -> None:
        """Decode by `plan` from now on; None: dense.

        Raises:
            PlanError: the plan is for another model, or needs what this executor was not loaded with.
        """

    @property
    def last_stats(self) -> dict[str, Any]:
        """Since the plan was set: "neurons" and "heads", mean density per layer (lists of L floats)."""

    def prefill(
        self, tokens: NDArray[np.int32], cache: Cache, *, all_logits: bool = False, sparse: bool = False
    ) -> NDArray[np.float32]:
        """Append `tokens` [t] to the sequence: densely, or `sparse`, each token selecting for itself as in `decode`.

        Returns:
            Logits after the last token [1, vocab], or after each [t, vocab].
        """

    def prefill_batch(
        self,
        tokens: Sequence[NDArray[np.int32]],
        caches: Sequence[Cache],
        *,
        all_logits: bool = False,
        sparse: bool = False,
    ) -> NDArray[np.float32]:
        """`prefill` of b sequences together: `tokens[i]` [t_i], at least one token, are appended to `caches[i]`.

        Returns:
            Logits after the last token of each [b, vocab], or after each token of the first, of the second, ...
            [sum of t_i, vocab].
        """

    def decode(self, tokens: NDArray[np.int32], caches: Sequence[Cache]) -> NDArray[np.float32]:
        """Append one token to each of b sequences: `tokens` [b] -> logits [b, vocab]."""

    def trace(self, *sequences: NDArray[np.int32], want: Collection[TraceField] = TRACE_FIELDS) -> Trace:
        """Run each of `sequences` from its beginning and tell what happened inside (`want`: which of it).

        Weights are read once for all. The pass is dense; with "chosen" it is by the plan, which must be set (`InputError`).
        """

    def close(self) -> None:
        """Give threads and memory back."""
