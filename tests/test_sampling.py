"""Each rule of the sampler against its definition in plain NumPy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from dejavu.cli.generate import parse_logit_bias
from dejavu.errors import InputError, NumericsError
from dejavu.sampling import Sampler, SamplingParams, candidates, draw, raw_logprobs

GREEDY = SamplingParams(temperature=0)
FLAGS = ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens")


def logits_of(seed: int, vocab: int, spread: float, coarse: bool) -> np.ndarray:
    """Random logits; `coarse` ones have many ties."""
    values = np.random.default_rng(seed).standard_normal(vocab) * spread
    return (np.round(values) if coarse else values).astype(np.float32)


logits_strategy = st.builds(
    logits_of,
    st.integers(0, 2**32),
    st.integers(1, 700),
    st.sampled_from([0.01, 1.0, 5.0, 40.0]),
    st.booleans(),
)


def sampler(params: SamplingParams, logits: np.ndarray, **options: object) -> Sampler:
    return Sampler(params, vocab_size=len(logits), **options)  # type: ignore[arg-type]


def kept(logits: np.ndarray, params: SamplingParams) -> tuple[set[int], np.ndarray]:
    """Ids that may be drawn, and the probabilities [vocab]."""
    ids, weights = candidates(logits, params, int(logits.argmax()))
    ids = np.arange(len(logits)) if ids is None else ids
    full = np.zeros(len(logits))
    full[ids] = weights
    return set(np.flatnonzero(full).tolist()), full / full.sum()


def softmax(logits: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: np.ndarray = weights / weights.sum()
    return probabilities


@given(logits_strategy)
def test_temperature_zero_takes_the_lowest_id_of_the_largest(logits: np.ndarray) -> None:
    expected = min(i for i, value in enumerate(logits) if value == max(logits))
    assert sampler(GREEDY, logits).sample(logits).token_id == expected


@given(logits_strategy, st.floats(0.05, 4))
def test_temperature_divides_logits(logits: np.ndarray, temperature: float) -> None:
    _, probabilities = kept(logits, SamplingParams(temperature=temperature))
    np.testing.assert_allclose(probabilities, softmax(logits / temperature), rtol=2e-4, atol=1e-9)


@given(logits_strategy, st.floats(1e-6, 1))
def test_min_p(logits: np.ndarray, min_p: float) -> None:
    ids, _ = kept(logits, SamplingParams(min_p=min_p))
    p = softmax(logits)
    edge = np.abs(p / (min_p * p.max()) - 1) < 1e-5
    expected = p >= min_p * p.max()
    assert all((i in ids) == expected[i] for i in range(len(p)) if not edge[i])


@given(logits_strategy, st.integers(-1, 800))
def test_top_k_keeps_ties_of_the_last(logits: np.ndarray, top_k: int) -> None:
    ids, _ = kept(logits, SamplingParams(top_k=top_k))
    k = len(logits) if top_k <= 0 else min(top_k, len(logits))
    least = np.sort(logits)[::-1][k - 1]
    # weights that underflow are as good as dropped
    visible = np.exp(logits - logits.max()) > 0
    assert ids == set(np.flatnonzero((logits >= least) & visible).tolist())


@given(logits_strategy, st.floats(0.001, 0.9999))
def test_top_p_keeps_the_fewest_that_reach_the_sum(logits: np.ndarray, top_p: float) -> None:
    ids, _ = kept(logits, SamplingParams(top_p=top_p))
    p = softmax(logits)
    order = np.argsort(-p, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
    for token, mass in zip(order, before, strict=True):
        if abs(mass - top_p) > 1e-5 and p[token] > 1e-30:  # float32 may fall on either side of the border
            assert (int(token) in ids) == (mass < top_p)


def test_top_p_on_exact_probabilities() -> None:
    logits = np.log(np.array([0.125, 0.5, 0.125, 0.25], np.float32))
    assert kept(logits, SamplingParams(top_p=0.4))[0] == {1}
    assert kept(logits, SamplingParams(top_p=0.51))[0] == {1, 3}
    assert kept(logits, SamplingParams(top_p=0.8))[0] == {0, 1, 3}
    assert kept(logits, SamplingParams(top_p=0.99))[0] == {0, 1, 2, 3}


def test_rules_in_order() -> None:
    """top_k counts what min_p left, and top_p is of what top_k left, all after temperature."""
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert kept(logits, SamplingParams(top_k=2, top_p=0.56))[0] == {0}  # 0.4 / 0.7 = 0.571
    assert kept(logits, SamplingParams(top_k=3, top_p=0.56))[0] == {0, 1}  # 0.4 / 0.9 = 0.444
    assert kept(logits, SamplingParams(min_p=0.6))[0] == {0, 1}
    assert kept(logits, SamplingParams(min_p=0.6, temperature=4))[0] == {0, 1, 2, 3}
    assert kept(logits, SamplingParams(min_p=0.6, top_p=0.56))[0] == {0}


@given(
    logits_strategy,
    st.lists(st.integers(0, 10), max_size=6),
    st.floats(0.5, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_penalties(
    logits: np.ndarray, prompt: list[int], repetition: float, frequency: float, presence: float
) -> None:
    vocab = len(logits)
    prompt = [t % vocab for t in prompt]
    params = replace(
        GREEDY, repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence
    )
    state = sampler(params, logits, prompt_token_ids=prompt)
    output: list[int] = []
    for _ in range(6):
        expected = logits.astype(np.float64)
        for token in set(prompt) | set(output):
            expected[token] = (
                expected[token] / repetition if expected[token] > 0 else expected[token] * repetition
            )
        for token in set(output):
            expected[token] -= frequency * output.count(token) + presence
        token = state.sample(logits).token_id
        assert expected[token] >= expected.max() - 1e-4
        output.append(token)


def test_logit_bias_forces_and_forbids() -> None:
    logits = np.array([3.0, 1.0, 2.0], np.float32)
    assert sampler(replace(GREEDY, logit_bias={1: 10.0}), logits).sample(logits).token_id == 1
    assert sampler(replace(GREEDY, logit_bias={0: -math.inf}), logits).sample(logits).token_id == 2
    everything = replace(GREEDY, logit_bias=dict.fromkeys(range(3), -math.inf))
    with pytest.raises(NumericsError, match="logit_bias"):
        sampler(everything, logits).sample(logits)


def test_bias_comes_before_repetition_penalty() -> None:
    logits = np.array([-1.0, 0.5], np.float32)
    params = replace(GREEDY, logit_bias={0: 2.0}, repetition_penalty=1.5)  # (-1 + 2) / 1.5 = 0.67 > 0.5
    assert sampler(params, logits, prompt_token_ids=[0]).sample(logits).token_id == 0


def test_stop_tokens_wait_for_min_tokens() -> None:
    logits = np.array([1.0, 5.0, 4.0], np.float32)
    state = sampler(replace(GREEDY, min_tokens=2), logits, stop_token_ids=[1, 2])
    assert [state.sample(logits).token_id for _ in range(3)] == [0, 0, 1]


@given(logits_strategy, st.integers(0, 12), st.integers(0, 2**20))
def test_logprobs_are_of_the_raw_distribution(logits: np.ndarray, top: int, seed: int) -> None:
    params = SamplingParams(temperature=0.5, top_k=3, logit_bias={0: 3.0}, seed=seed, logprobs=top)
    sampled = sampler(params, logits).sample(logits)
    assert sampled.logprobs is not None
    expected = np.log(np.maximum(softmax(logits), 1e-300))
    assert sampled.logprobs.token_id == sampled.token_id
    assert sampled.logprobs.logprob == pytest.approx(expected[sampled.token_id], abs=1e-4)
    assert sampled.logprobs.rank == 1 + sum(logits > logits[sampled.token_id])
    order = np.argsort(-logits, kind="stable")[:top]
    assert [token for token, _ in sampled.logprobs.top] == order.tolist()
    np.testing.assert_allclose([p for _, p in sampled.logprobs.top], expected[order], atol=1e-4)


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    state = sampler(SamplingParams(seed=1), logits)
    counts = np.bincount([state.sample(logits).token_id for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, [0.5, 0.25, 0.125, 0.125], atol=0.03)


@given(
    st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=900), st.floats(0, 1, exclude_max=True)
)
def test_draw_is_the_inverse_of_the_running_sum(values: list[float], uniform: float) -> None:
    weights = np.array([*values, 1.0], np.float32)
    total = np.cumsum(weights, dtype=np.float64)  # exact: multiples of a quarter
    assert draw(weights, uniform) == int(np.searchsorted(total, uniform * total[-1], side="right"))


def test_draw_never_lands_on_a_dropped_token() -> None:
    weights = np.zeros(1000, np.float32)
    weights[300:310] = 0.1
    for uniform in (0.0, 0.5, np.nextafter(1, 0)):
        assert 300 <= draw(weights, float(uniform)) < 310


def test_same_seed_same_tokens() -> None:
    steps = [logits_of(i, 500, 2.0, False) for i in range(30)]

    def run(seed: int | None, index: int = 0) -> list[int]:
        state = Sampler(SamplingParams(seed=seed, top_p=0.9), vocab_size=500, index=index)
        return [state.sample(logits).token_id for logits in steps]

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(7, 0) != run(7, 1)
    assert run(None) != run(None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bad_logits_are_refused(bad: float, temperature: float) -> None:
    logits = np.array([1.0, bad, 2.0], np.float32)
    with pytest.raises(NumericsError, match="finite"):
        sampler(SamplingParams(temperature=temperature), logits).sample(logits)


@pytest.mark.parametrize("temperature", [1e-38, 1e-6, 1e6])
def test_extreme_temperatures(temperature: float) -> None:
    logits = np.array([1.0, 3e38, -3e38, -np.inf], np.float32)
    token = (
        sampler(SamplingParams(temperature=temperature, top_p=0.5, seed=0), logits).sample(logits).token_id
    )
    assert token in (0, 1, 2)
    if temperature < 1:
        assert token == 1


def test_logits_are_left_as_they_are() -> None:
    logits = logits_of(0, 50, 1.0, False)
    before = logits.copy()
    params = SamplingParams(
        temperature=0.5,
        top_k=9,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.2,
        frequency_penalty=1,
        logit_bias={3: 1},
    )
    state = sampler(params, logits, prompt_token_ids=[1, 2])
    for _ in range(4):
        state.sample(logits)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0), ("n", 1.5), ("n", True), ("n", None), ("temperature", -0.1), ("temperature", math.nan),
        ("temperature", "1"), ("top_k", -2), ("top_p", 0), ("top_p", 1.1), ("min_p", -0.1), ("min_p", 2),
        ("repetition_penalty", 0), ("presence_penalty", 3), ("frequency_penalty", math.inf), ("seed", -1),
        ("max_tokens", 0), ("min_tokens", -1), ("min_tokens", 300), ("stop", ("",)), ("stop", (3,)),
        ("stop_token_ids", (-1,)), ("logit_bias", {-1: 1.0}), ("logit_bias", {1: math.nan}), ("logprobs", -1),
        ("stop", 5), ("stop", b"end"), ("stop", {"end": 1}), ("stop_token_ids", 5), ("stop_token_ids", "12"),
        ("stop_token_ids", (True,)), ("stop_token_ids", (1.0,)), ("logit_bias", 5), ("logit_bias", [1, 2]),
        ("logit_bias", {1: "2"}), ("logit_bias", {1: None}), ("logit_bias", {True: 1.0}),
        ("temperature", 10**400), ("temperature", -(10**400)), ("temperature", None), ("temperature", np.nan),
        ("temperature", True), ("n", 10**400), ("n", np.float32(1)), ("n", np.bool_(True)),
        ("top_p", np.float32(0)),
        *((name, value) for name in FLAGS for value in ("no", "x", None, 1, 0.0, [])),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match="must be"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {0: 1e39}), ("logit_bias", {0: -1e39}), ("logit_bias", {0: math.inf}),
        ("logit_bias", {0: -(10**400)}), ("repetition_penalty", 1e-46), ("repetition_penalty", 1e-4),
        ("repetition_penalty", 1e39), ("repetition_penalty", math.inf),
    ],
)  # fmt: skip
def test_what_float32_cannot_carry_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name} is .* from .* to "):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [1e30, -1e30, -math.inf])
@pytest.mark.parametrize("penalty", [0.001, 1000])
def test_the_most_that_is_allowed_overflows_nothing(bias: float, penalty: float) -> None:
    logits = np.array([-40.0, 40.0, 1.0], np.float32)
    params = SamplingParams(
        logit_bias={0: bias, 1: bias}, repetition_penalty=penalty, temperature=1e-30, min_p=0.1, logprobs=2
    )
    state = sampler(params, logits, prompt_token_ids=[0, 1])
    assert {state.sample(logits).token_id for _ in range(4)} <= ({0, 1} if bias > 0 else {2})


def test_numpy_numbers_are_as_good_as_pythons() -> None:
    given = SamplingParams(
        n=np.int64(2),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        min_p=0,
        seed=np.uint8(3),  # type: ignore[arg-type]
        stop_token_ids=np.array([4, 5]),  # type: ignore[arg-type]
        logit_bias={np.int32(6): np.float16(-math.inf), 7: 1},  # type: ignore[dict-item]
        ignore_eos=np.bool_(True),  # type: ignore[arg-type]
    )
    expected = SamplingParams(
        n=2,
        temperature=0.5,
        seed=3,
        stop_token_ids=(4, 5),
        logit_bias={6: -math.inf, 7: 1.0},
        ignore_eos=True,
    )
    assert given == expected
    assert repr(given) == repr(expected)


@pytest.mark.parametrize("name", ["stop", "stop_token_ids", "logit_bias"])
def test_none_is_empty(name: str) -> None:
    assert SamplingParams(**{name: None}) == SamplingParams()  # type: ignore[arg-type]


def test_equal_parameters_have_equal_hashes() -> None:
    one, same, other = (SamplingParams(stop=["a"], logit_bias={1: bias}) for bias in (2, 2.0, 3))
    assert one == same != other
    assert {one: "found"}[same] == "found"
    assert len({one, same, other, SamplingParams()}) == 3


@pytest.mark.parametrize("entries", [["5=1", "5=2"], ["5=1", "6=1", "05=1"]])
def test_a_bias_that_is_given_twice_is_refused(entries: list[str]) -> None:
    with pytest.raises(typer.BadParameter, match="token 5 is given twice"):
        parse_logit_bias(entries)


def test_the_same_text_several_times_is_refused() -> None:
    with pytest.raises(InputError, match="n is 2; it must be 1 with temperature 0"):
        SamplingParams(n=2, temperature=0)
    assert SamplingParams(n=1, temperature=0).n == SamplingParams(n=2, temperature=0.1).n - 1 == 1


def test_a_number_that_is_too_long_to_write() -> None:
    with pytest.raises(InputError, match="n is a number of very many digits; it must be a whole number"):
        SamplingParams(n=10**5000)


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    for params in (SamplingParams(logit_bias={10: 1.0}), SamplingParams(stop_token_ids=[10])):
        with pytest.raises(InputError, match="vocabulary size 10"):
            Sampler(params, vocab_size=10)


def test_one_stop_string_may_be_bare() -> None:
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


def test_more_logprobs_than_tokens() -> None:
    assert len(raw_logprobs(np.zeros(3, np.float32), 1, 10).top) == 3


def test_a_range_without_an_end_has_none() -> None:
    with pytest.raises(InputError, match=r"max_tokens is -4; it must be a whole number from 1 on$"):
        SamplingParams(max_tokens=-4)
    with pytest.raises(InputError, match=r"a number from 0 to 1$"):
        SamplingParams(top_p=2)
