"""`SamplingParams` (vLLM's names) and `Sampler`, which turns logits into the next token.

Order of the rules, as in vLLM: logprobs of the raw logits; min_tokens and logit_bias; repetition, frequency
and presence penalties; then the largest logit (temperature 0), or temperature, min_p, top_k, top_p, a draw.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dejavu.arguments import as_float, flag, real, refusal, whole
from dejavu.errors import NumericsError
from dejavu.outputs import TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. Wrong values raise `InputError`.

    NumPy's numbers may be given for Python's, and None for an empty `stop`, `stop_token_ids` or `logit_bias`.
    """

    n: int = 1
    """Completions per prompt, computed together from one prompt; more than one only with a temperature above 0."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token (the lowest id of equals)."""
    top_k: int = 0
    """Keep the k most likely tokens (and those equal to the k-th); 0 or -1 keeps all."""
    top_p: float = 1.0
    """Keep the fewest most likely tokens whose probabilities sum to at least this."""
    min_p: float = 0.0
    """Keep tokens at least this times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in the prompt or the output. 0.001 to 1000."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens seen in the output."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time that the token was seen in the output."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)  # a dict has no hash
    """Token id -> what is added to its logit, -1e30 to 1e30; -inf forbids it."""
    seed: int | None = None
    """Same seed, same tokens. None draws a fresh one."""
    max_tokens: int | None = 256
    """Most tokens to generate; None: until the context is full."""
    min_tokens: int = 0
    """No stop of any kind before so many tokens."""
    stop: Sequence[str] = ()
    """Strings that end the text. One string may be given bare."""
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    """Log-probability of each chosen token, and of so many most likely ones."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop, "strings")
        if not all(isinstance(text, str) and text for text in stop):
            raise refusal("stop", stop, "strings that are not empty")
        ids = _items("stop_token_ids", self.stop_token_ids, "whole numbers")
        checked: dict[str, Any] = {
            "stop": stop,
            "stop_token_ids": tuple(_token_id(token) for token in ids),
            "logit_bias": _biases(self.logit_bias),
        }
        for name in _FLAGS:
            checked[name] = flag(name, getattr(self, name))
        for name, limits in _WHOLE.items():
            value = getattr(self, name)
            left_out = value is None and name in _OPTIONAL
            checked[name] = None if left_out else whole(name, value, *limits)
        for name, limits in _REAL.items():
            checked[name] = real(name, getattr(self, name), *limits)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.top_p == 0:
            raise refusal("top_p", self.top_p, "above 0")
        if self.n > 1 and self.temperature == 0:
            raise refusal("n", self.n, "1 with temperature 0, where all completions would be the same")
        most = self.max_tokens or self.min_tokens
        if self.min_tokens > most:
            raise refusal("min_tokens", self.min_tokens, f"at most max_tokens, {most}")


_FLAGS = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens")
_WHOLE: dict[str, tuple[float, float]] = {
    "n": (1, 4096),
    "top_k": (-1, math.inf),
    "seed": (0, math.inf),
    "max_tokens": (1, math.inf),
    "min_tokens": (0, math.inf),
    "logprobs": (0, math.inf),
}
_OPTIONAL = ("seed", "max_tokens", "logprobs")
_REAL: dict[str, tuple[float, float]] = {
    "temperature": (0, 1e6),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (1e-3, 1000),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
_MOST_BIAS = 1e30
"""Far beyond any logit; even divided by the least repetition penalty it is finite in float32."""


def _items(name: str, values: object, wanted: str) -> tuple[Any, ...]:
    """The `values` of an argument that may be left out as None."""
    if values is None:
        return ()
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
        raise refusal(name, values, f"a list of {wanted}")
    return tuple(values)


def _token_id(token: object) -> int:
    return whole("a token id", token, 0)


def _biases(biases: object) -> dict[int, float]:
    if biases is None:
        return {}
    if not isinstance(biases, Mapping):
        raise refusal("logit_bias", biases, "a dict of token ids and numbers")
    return {_token_id(token): _bias(bias) for token, bias in biases.items()}


def _bias(bias: object) -> float:
    number = as_float(bias)
    if number != -math.inf and not abs(number) <= _MOST_BIAS:
        raise refusal("logit_bias", bias, f"a number from {-_MOST_BIAS:g} to {_MOST_BIAS:g}, or -inf")
    return number


@dataclass(frozen=True)
class Sampled:
    """The next token, and its log-probabilities if the parameters ask for them."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class Sampler:
    """Chooses the tokens of one completion; remembers what it chose, for penalties and min_tokens.

    Args:
        params: the rules.
        prompt_token_ids: for `repetition_penalty`.
        stop_token_ids: the tokens that would end this completion; forbidden before `min_tokens`.
        vocab_size: length of the logits.
        index: which of the `n` completions; each has its own random stream.

    Raises:
        InputError: a token id of `params` lies outside the vocabulary.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        vocab_size: int,
        prompt_token_ids: Iterable[int] = (),
        stop_token_ids: Iterable[int] = (),
        index: int = 0,
    ) -> None:
        for token in (*params.logit_bias, *params.stop_token_ids):
            if token >= vocab_size:
                raise refusal("a token id", token, f"below the vocabulary size {vocab_size}")
        self.params = params
        self._count = 0
        self._stop_ids = _ids(set(stop_token_ids))
        self._bias_ids = _ids(params.logit_bias)
        self._bias = np.array(list(params.logit_bias.values()), np.float32)
        # Penalties touch only the tokens seen so far: their ids (prompt and output; output alone) and counts.
        self._repeated = params.repetition_penalty != 1
        self._penalised = params.presence_penalty != 0 or params.frequency_penalty != 0
        self._seen = np.unique(_ids(prompt_token_ids)) if self._repeated else _ids(())
        self._output = _ids(())
        self._output_counts = np.zeros(0, np.float32)
        seed = secrets.randbits(64) if params.seed is None else int(params.seed)
        self._random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index,))))

    def sample(self, logits: Floats) -> Sampled:
        """Choose the next token.

        Args:
            logits: [vocab] float32; left as it is.

        Raises:
            NumericsError: logits hold NaN or +infinity, or no token is left.
        """
        token = self._choose(self._adjust(logits))
        logprobs = None
        if self.params.logprobs is not None:
            logprobs = raw_logprobs(logits, token, self.params.logprobs)
        self._remember(token)
        return Sampled(token, logprobs)

    def _adjust(self, logits: Floats) -> Floats:
        """Apply min_tokens, logit_bias and penalties. Returns `logits` itself when nothing applies."""
        params = self.params
        forbid_stop = self._count < params.min_tokens and self._stop_ids.size > 0
        if not (forbid_stop or self._bias_ids.size or self._repeated or self._penalised):
            return logits
        logits = logits.copy()
        if forbid_stop:
            logits[self._stop_ids] = -np.inf
        if self._bias_ids.size:
            logits[self._bias_ids] += self._bias
        if self._repeated:
            seen = logits[self._seen]
            penalty = np.float32(params.repetition_penalty)
            logits[self._seen] = np.where(seen > 0, seen / penalty, seen * penalty)
        if self._penalised:
            frequency = np.float32(params.frequency_penalty) * self._output_counts
            logits[self._output] -= frequency + np.float32(params.presence_penalty)
        return logits

    def _choose(self, logits: Floats) -> int:
        best = int(logits.argmax())  # NaN wins an argmax, so one look at the winner finds it
        if not math.isfinite(logits[best]):
            raise NumericsError(
                f"the largest logit is {logits[best]}; it must be finite",
                fix="check the model's weights for NaN, and that logit_bias leaves some token",
            )
        if self.params.temperature == 0:
            return best
        ids, weights = candidates(logits, self.params, best)
        place = draw(weights, self._random.random())
        return place if ids is None else int(ids[place])

    def _remember(self, token: int) -> None:
        self._count += 1
        if self._repeated and token not in self._seen:
            self._seen = np.append(self._seen, token)
        if self._penalised:
            (place,) = np.nonzero(self._output == token)
            if place.size:
                self._output_counts[place[0]] += 1
            else:
                self._output = np.append(self._output, token)
                self._output_counts = np.append(self._output_counts, np.float32(1))


def candidates(logits: Floats, params: SamplingParams, best: int) -> tuple[Ids | None, Floats]:
    """Apply temperature, min_p, top_k and top_p.

    Args:
        logits: [vocab]; -inf is allowed.
        params: the rules; temperature above 0.
        best: the argmax of `logits`.

    Returns:
        ids [m] in rising order (None: the whole vocabulary) and their unnormalised probabilities [m]: the
        largest is 1, and those that top_p rules out are 0.
    """
    # [vocab] float32, all <= 0. Subtract, then divide: a tiny temperature then gives -inf, never NaN.
    with np.errstate(over="ignore"):
        scaled = logits - logits[best]
        scaled /= np.float32(max(params.temperature, 1e-30))
    ids: Ids | None = None
    if params.min_p > 0:
        ids = np.flatnonzero(scaled >= math.log(params.min_p))
        scaled = scaled[ids]
    if 0 < params.top_k < scaled.size:
        kth = np.partition(scaled, scaled.size - params.top_k)[scaled.size - params.top_k]
        kept = np.flatnonzero(scaled >= kth)
        ids, scaled = _take(ids, kept), scaled[kept]
    weights = np.exp(scaled)
    if params.top_p < 1:
        wanted = params.top_p * float(weights.sum(dtype=np.float64))
        near = np.flatnonzero(scaled > -8)  # nats; mostly few tokens, and enough
        if float(weights[near].sum(dtype=np.float64)) >= wanted:
            ids, scaled, weights = _take(ids, near), scaled[near], weights[near]
        drop_tail(scaled, weights, wanted)
    return ids, weights


def drop_tail(scaled: Floats, weights: Floats, wanted: float) -> None:
    """Set to 0 all `weights` but the fewest largest ones that sum to at least `wanted`.

    Without a full sort: the mass per bin of `scaled` tells in which bin the sum is reached; only that one is
    sorted. Of equals the lower place is kept.

    Args:
        scaled: [m] log-weights, the largest is 0.
        weights: [m] ``exp(scaled)``; changed in place.
        wanted: above 0, at most the sum of `weights`.
    """
    reach = min(20.0, max(-float(scaled.min()), 1e-6))  # nats; what is less likely shares the last bin
    depth = np.maximum(scaled, np.float32(-reach))
    depth *= np.float32(-512 / reach)
    bins = depth.astype(np.intp)
    mass = np.cumsum(np.bincount(bins, weights))
    edge = int(np.searchsorted(mass, wanted))
    inside = np.flatnonzero(bins == edge)
    inside = inside[np.argsort(-weights[inside], kind="stable")]
    before = mass[edge - 1] if edge else 0.0
    count = int(np.searchsorted(before + np.cumsum(weights[inside], dtype=np.float64), wanted)) + 1
    weights *= bins <= edge
    weights[inside[count:]] = 0


def draw(weights: Floats, uniform: float) -> int:
    """The place at which the running sum of `weights` [m] passes `uniform` (in [0, 1)) of its total.

    Sums of blocks first: a running sum over a whole vocabulary is the slowest step of sampling.
    """
    block = 256
    sums = np.cumsum(np.add.reduceat(weights, np.arange(0, weights.size, block), dtype=np.float64))
    target = uniform * sums[-1]
    first = int(np.searchsorted(sums, target, side="right"))
    first = min(first, sums.size - 1)
    inside = np.cumsum(weights[first * block : (first + 1) * block], dtype=np.float64)
    place = int(np.searchsorted(inside, target - (sums[first - 1] if first else 0.0), side="right"))
    # rounding may carry the target past the block's sum: then take its last weight that is not 0
    return first * block + min(place, int(np.searchsorted(inside, inside[-1])))


def raw_logprobs(logits: Floats, token: int, top: int) -> TokenLogprobs:
    """Log-probabilities (nats) of `token` and of the `top` most likely tokens under ``softmax(logits)``.

    Args:
        logits: [vocab] float32.
        token: its id.
        top: how many most likely ones; of equals the lower id comes first.
    """
    largest = logits.max()
    with np.errstate(over="ignore"):
        mass = float(np.exp(logits - largest).sum(dtype=np.float64))
    total = float(largest) + math.log(mass)
    top = min(top, logits.size)
    ids = np.argpartition(logits, logits.size - top)[logits.size - top :] if top else _ids(())
    if top:  # argpartition takes any of equals at the border; take the lowest ids
        ids = np.flatnonzero(logits >= logits[ids].min())
        ids = ids[np.argsort(-logits[ids], kind="stable")][:top]
    return TokenLogprobs(
        token_id=token,
        logprob=float(logits[token]) - total,
        rank=1 + int(np.count_nonzero(logits > logits[token])),
        top=tuple((int(i), float(logits[i]) - total) for i in ids),
    )


def _ids(values: Iterable[int]) -> Ids:
    return np.fromiter(values, np.int64)


def _take(ids: Ids | None, kept: Ids) -> Ids:
    return kept if ids is None else ids[kept]
