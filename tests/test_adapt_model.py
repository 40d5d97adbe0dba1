"""The torch decoder against the reference, masks against its selectors, and the loss against autograd."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavu import _core, codecs, nested
from dejavu.errors import UnsupportedModelError
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, LayerPlan, LowRank, Oracle, Products, Sketch, Threshold
from dejavu.reference import ReferenceExecutor
from dejavu.training.quantiles import Quantiles
from tiny_chat import build_tiny_chat
from tiny_models import CASES, prompt, relative_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

torch = pytest.importorskip("torch")

from dejavu.adapt import operations  # noqa: E402
from dejavu.adapt.divergence import Head, divergence  # noqa: E402
from dejavu.adapt.leading import Held, leading  # noqa: E402
from dejavu.adapt.masks import MaskPass, PlanMasks, leading_weights  # noqa: E402
from dejavu.adapt.model import Batch, Decoder, read_tensors  # noqa: E402
from dejavu.adapt.operations import (  # noqa: E402
    causal_softmax,
    choose,
    column_major,
    gather,
    hidden_values,
    linear,
    rms_norm,
    rotate,
    spread,
)
from dejavu.adapt.options import AdaptOptions  # noqa: E402
from dejavu.adapt.student import Student  # noqa: E402

TOLERANCE = 1e-5
DYNAMIC = ("rope-dynamic", "neox-dynamic")


@pytest.mark.parametrize("name", [name for name in CASES if name not in DYNAMIC])
def test_equals_the_reference(name: str, tiny_folder: Callable[[str], Path]) -> None:
    opened = open_model(tiny_folder(name))
    tokens = prompt(CASES[name])
    other = tokens[:7][::-1].copy()
    tensors = read_tensors(opened.config, opened.weights)
    with torch.no_grad():
        hidden = Decoder(opened.config, tensors)(Batch.of([tokens, other]))
        found = Head.of(opened.config, tensors, torch.float32).log_probs(hidden)
    reference = ReferenceExecutor(opened.config, opened.weights)
    opened.close()
    for piece, part in ((tokens, found[: len(tokens)]), (other, found[len(tokens) :])):
        logits = reference.prefill(piece, reference.new_cache(), all_logits=True)
        expected = torch.log_softmax(torch.from_numpy(logits), dim=-1)
        assert relative_error(part.numpy(), expected.numpy()) < TOLERANCE


@pytest.mark.parametrize("name", DYNAMIC)
def test_refuses_frequencies_that_change(name: str, tiny_folder: Callable[[str], Path]) -> None:
    opened = open_model(tiny_folder(name))
    with pytest.raises(UnsupportedModelError, match="dynamic"):
        Decoder(opened.config, {})
    opened.close()


@given(seed=st.integers(0, 1000), codec=st.sampled_from(["int8", "int4"]), data=st.data())
@settings(deadline=None, max_examples=20)
def test_leading_bits_are_those_of_the_codec(seed: int, codec: Any, data: st.DataObject) -> None:
    n, d = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 600)))
    bits = data.draw(st.sampled_from(nested.LEADING_BITS[codec]))
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    expected = nested.estimate(codecs.encode(codec, rows), bits)
    np.testing.assert_allclose(leading(codec, rows, bits), expected, rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 1000), codec=st.sampled_from(["int8", "int4"]), data=st.data())
@settings(deadline=None, max_examples=20)
def test_held_weights_are_what_the_leading_bits_say(seed: int, codec: Any, data: st.DataObject) -> None:
    n, d = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 100)))
    bits = data.draw(st.sampled_from(nested.LEADING_BITS[codec]))
    master = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32))
    used, turned = torch.full((n, d), torch.nan), torch.full((d, n), torch.nan)
    held = Held(codec, bits, master, used, turned)
    scale = float(master.abs().max()) / (120 if codec == "int8" else 7)
    for change in (0.0, 0.5):
        master += change * scale / 16
        held.refresh()
        expected = leading(codec, master.numpy(), bits)
        # A weight halfway between two codes may be rounded either way.
        off = np.abs(used.numpy() - expected) > 1e-5
        assert off.mean() <= 0.01
        np.testing.assert_array_equal(turned.numpy(), used.numpy().T)
    before = used.clone()
    master[:] = before
    held.publish()  # what the bits say of what they say
    np.testing.assert_allclose(used, before, atol=1e-5 * scale)


@pytest.mark.parametrize("gated", [True, False])
def test_leading_values_are_those_of_the_reference(gated: bool, tiny_folder: Callable[[str], Path]) -> None:
    name = "llama-head-dim" if gated else "opt-350m"
    opened = open_model(tiny_folder(name))
    config = opened.config
    selectors = (Sketch(bits=4, threshold=0.02, values="leading"),) * config.n_layers
    held = leading_weights(config, selectors, "int8")
    assert len(held) == config.n_layers * (2 if gated else 1)
    student = Student(
        config, opened.weights, AdaptOptions(density=0.3, tokens=1), torch.float32, leading=held
    )
    masks = PlanMasks(
        config,
        selectors,
        [0.3] * config.n_layers,
        codec="int8",
        masters=student.masters,
        held=student.held,
        dtype=torch.float32,
    )
    masks.thresholds = [0.02] * config.n_layers
    # The reference rounds all weights; here all others are given as rounded.
    reference = ReferenceExecutor(config, opened.weights, codec="int8")
    tensors = {name: torch.from_numpy(reference._w[name].copy()) for name in opened.weights.names()}
    opened.close()
    tensors |= {name: student._used[name].detach() for name in held}
    tokens, run = prompt(CASES[name])[:30], MaskPass(masks, recall=True)
    with torch.no_grad():
        hidden = Decoder(config, tensors)(Batch.of([tokens]), run)
        found = Head.of(config, tensors, torch.float32).log_probs(hidden)
    layers = tuple(LayerPlan(neurons=selector) for selector in selectors)
    reference.set_plan(AccessPlan(model=reference.fingerprint, layers=layers))
    logits = reference.prefill(tokens, reference.new_cache(), all_logits=True, sparse=True)
    expected = torch.log_softmax(torch.from_numpy(logits), dim=-1)
    assert reference.last_stats["neurons"] == pytest.approx(run.densities, abs=1e-3)
    off = np.abs(found.numpy() - expected.numpy()).max(axis=1) / float(expected.abs().max())
    assert np.median(off) < TOLERANCE
    assert run.recalls == pytest.approx(
        [1.0] * config.n_layers, abs=0.02
    )  # neurons are chosen by what they hold


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["sketch", "fewest", "threshold", "oracle", "low_rank", "products"])
def test_masks_are_those_of_the_reference(kind: str, codec: Any, tmp_path: Path) -> None:
    opened = open_model(build_tiny_chat(tmp_path / "model"))
    config, rng = opened.config, np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, 50).astype(np.int32)
    selectors: dict[str, Any] = {
        "sketch": Sketch(bits=max(nested.LEADING_BITS[codec]), lookahead=1, threshold=0.0),
        "fewest": Sketch(bits=min(nested.LEADING_BITS[codec]), lookahead=1, threshold=0.0),
        "threshold": Threshold(threshold=0.0),
        "oracle": Oracle(threshold=0.0),
        "low_rank": LowRank(
            a=rng.standard_normal((4, config.d_model), np.float32),
            b=rng.standard_normal((config.d_ff, 4), np.float32),
            bias=rng.standard_normal(config.d_ff, np.float32),
            hidden="relu",
            lookahead=1,
            threshold=0.0,
        ),
        "products": Products(
            a=rng.standard_normal((4, config.d_model), np.float32),
            b=rng.standard_normal((2 * config.d_ff, 4), np.float32),
            bias=rng.standard_normal(2 * config.d_ff, np.float32),
            spread=rng.random(2 * config.d_ff, np.float32),
            lookahead=1,
            threshold=0.0,
        ),
    }
    selector = selectors[kind]
    # The reference rounds all weights; sketches of rounded weights are the same again.
    reference = ReferenceExecutor(config, opened.weights, codec=codec)
    tensors = {name: torch.from_numpy(reference._w[name].copy()) for name in opened.weights.names()}
    masters = read_tensors(config, opened.weights)
    opened.close()
    masks = PlanMasks(
        config,
        [selector] * 2,
        [0.4] * 2,
        codec=codec,
        masters=masters,
        held={},
        dtype=torch.float32,
        threads=1,
    )
    decoder, batch = Decoder(config, tensors), Batch.of([tokens])
    scores = [Quantiles(), Quantiles()]
    with torch.no_grad():  # without thresholds, a pass goes by its own quantiles
        decoder(batch, MaskPass(masks, collect=scores))
    for layer, found in enumerate(scores):
        masks.settle(layer, found)
    run = MaskPass(masks, recall=True)
    with torch.no_grad():
        found = Head.of(config, tensors, torch.float32).log_probs(decoder(batch, run))
    assert run.densities == pytest.approx([0.4, 0.4], abs=0.01)
    # Chance gives the density itself, as a predictor of random weights does. The first layer looks at its own input.
    low, high = {
        "oracle": (0.97, 1),
        "sketch": (0.6, 1),
        "fewest": (0.5, 1),
        "threshold": (0.5, 1),
        "low_rank": (0.25, 0.55),
        "products": (0.25, 0.55),
    }[kind]
    assert low <= run.recalls[0] <= high
    layers = [LayerPlan(neurons=deployed) for deployed in masks.deployed()]
    reference.set_plan(AccessPlan(model=reference.fingerprint, layers=tuple(layers)))
    logits = reference.prefill(tokens, reference.new_cache(), all_logits=True, sparse=True)
    assert reference.last_stats["neurons"] == pytest.approx(run.densities, abs=1e-3)
    expected = torch.log_softmax(torch.from_numpy(logits), dim=-1)
    # A score next to its threshold may fall on either side: most tokens see none of these.
    off = np.abs(found.numpy() - expected.numpy()).max(axis=1) / float(expected.abs().max())
    assert np.median(off) < TOLERANCE


def test_thresholds_follow_the_target(tmp_path: Path) -> None:
    opened = open_model(build_tiny_chat(tmp_path / "model"))
    config = opened.config
    tensors = read_tensors(config, opened.weights)
    opened.close()
    sketch = Sketch(bits=4, threshold=0.0)
    masks = PlanMasks(
        config, [sketch] * 2, [0.3, 0.999], codec="int8", masters=tensors, held={}, dtype=torch.float32
    )
    decoder, rng = Decoder(config, tensors), np.random.default_rng(0)
    for annealed, expected in ((0.5, 0.65), (1.0, 0.3)):
        for _ in range(60):
            tokens = rng.integers(0, config.vocab_size, 64).astype(np.int32)
            run = MaskPass(masks, annealed=annealed, learning=True)
            with torch.no_grad():
                decoder(Batch.of([tokens]), run)
            masks.follow([run])
        assert run.densities == pytest.approx([expected, 1.0], abs=0.06)


@pytest.mark.parametrize("loss", ["forward-kl", "reverse-kl", "mixed"])
@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_divergence_and_its_gradient(loss: Any, cap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dejavu.adapt.divergence._CACHED", 160)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1500, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    bias = torch.randn(40, generator=generator, dtype=torch.float64)

    def logits(x: Any) -> Any:
        z = x @ weight.T + bias
        return torch.log_softmax(cap * torch.tanh(z / cap) if cap else z, dim=-1)

    student.requires_grad_()
    s, t = logits(student), logits(teacher)
    forward, reverse = ((a.exp() * (a - b)).sum(dim=-1).mean() for a, b in ((t, s), (s, t)))
    expected = {"forward-kl": forward, "reverse-kl": reverse, "mixed": (forward + reverse) / 2}[loss]
    (slope,) = torch.autograd.grad(expected, student)
    ours = student.detach().float().requires_grad_()
    found = divergence(
        ours,
        teacher.float(),
        Head(weight.float(), bias.float(), cap),
        Head(weight.float(), bias.float(), cap),
        loss,
    )
    found.backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.grad.double(), slope, rtol=1e-3, atol=1e-6)


def check_slopes(ours: Any, plain: Any, slope: Any, inputs: Any, copies: Any, dtype: Any) -> None:
    """Equal values and gradients; in bfloat16 up to its rounding."""
    ours.backward(slope.to(ours.dtype))
    plain.backward(slope)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(ours.float(), plain, **near)
    for x, y in zip(inputs, copies, strict=True):
        torch.testing.assert_close(x.grad.float(), y.grad, **near)


@pytest.mark.parametrize("isa", [isa for isa in ("avx2", "avx512") if isa in _core.isas()])
def test_many_are_counted_exactly(isa: str) -> None:
    """Sums of ones in float32 stop at 2^24, in each of eight lanes."""
    n = (1 << 27) + 5
    assert _core.learn_choose(isa, torch.ones(n, dtype=torch.bfloat16), 0.5) == n


@pytest.mark.parametrize("isa", _core.isas())
def test_arrays_that_do_not_fit_are_refused(isa: str) -> None:
    """Before anything is read or written beyond them."""

    def of(*shape: int, dtype: Any = torch.float32) -> Any:
        return torch.zeros(*shape, dtype=dtype)

    x, less, half = of(3, 4), of(3, 3), of(3, 4, dtype=torch.bfloat16)
    activate = (isa, "silu", 0.0)
    core: Any = _core
    for call, *arguments in (
        (core.learn_rms_norm, isa, x, of(4), 1e-3, of(2), of(3, 4)),
        (core.learn_rms_norm, isa, x, of(5), 1e-3, of(3), of(3, 4)),
        (core.learn_rms_norm, isa, x, of(4), 1e-3, of(3), less),
        (core.learn_rms_norm_slope, isa, x, of(4), of(3), less, of(3, 4)),
        (core.learn_rms_norm_slope, isa, x, of(4), of(3), x, less),
        (core.learn_activate, *activate, x, None, None, less),
        (core.learn_activate, *activate, x, None, None, half),
        (core.learn_activate, *activate, x, less, None, of(3, 4)),
        (core.learn_activate, *activate, x, x, less, of(3, 4)),
        (core.learn_activate, *activate, x, half, None, of(3, 4)),
        (core.learn_activate_slope, *activate, x, None, None, less, of(3, 4), None),
        (core.learn_activate_slope, *activate, x, None, None, x, less, None),
        (core.learn_activate_slope, *activate, x, x, None, x, of(3, 4), less),
        (core.learn_activate_slope, *activate, x, x, None, x, of(3, 4), None),
        (core.learn_activate_slope, *activate, x, None, None, x, of(3, 4), of(3, 4)),
        (core.learn_activate_slope, *activate, x, x, less, x, of(3, 4), of(3, 4)),
        (core.learn_rotate, isa, of(2, 3, 8), of(2, 1, 4), of(2, 1, 4), False, of(2, 3, 7)),
        (core.learn_rotate, isa, of(2, 3, 8), of(2, 1, 4), of(2, 1, 3), False, of(2, 3, 8)),
        (core.learn_rotate, isa, of(2, 3, 8), of(2, 1, 5), of(2, 1, 5), False, of(2, 3, 8)),
        (core.learn_rotate, isa, of(2, 3, 8), of(3), of(3), False, of(2, 3, 8)),
        (core.learn_rotate, isa, of(6, 8), of(6, 4), of(6, 4), False, of(6, 8)),
        (core.learn_attend, isa, of(2, 3, 3), 0, 0.5, of(2, 3, 2)),
        (core.learn_attend, isa, of(2, 3, 4), 0, 0.5, of(2, 3, 4)),
        (core.learn_attend_slope, isa, of(2, 3, 3), of(2, 3, 2), 0, 0.5, of(2, 3, 3)),
        (core.learn_attend_slope, isa, of(2, 3, 3), of(2, 3, 3), 0, 0.5, of(2, 3, 2)),
        (core.learn_divergence, isa, x, less, of(3, 4)),
        (core.learn_divergence, isa, x, half, of(3, 4)),
        (core.learn_divergence, isa, x, x, less),
        (core.learn_divergence, isa, of(12), of(12), of(12)),
    ):
        with pytest.raises(ValueError, match="fit together"):
            call(*arguments)


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
class TestOperations:
    """Against the plain expressions, by autograd in float32."""

    @pytest.fixture(autouse=True)
    def chosen(self, isa: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("DEJAVU_ISA", isa)
        operations._core.cache_clear()
        assert operations._core()[1] == isa
        yield
        operations._core.cache_clear()

    @pytest.fixture
    def draw(self, dtype: Any) -> Callable[..., Any]:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int, wide: bool = False) -> tuple[Any, Any]:
            x = torch.randn(*shape, generator=generator).to(dtype)
            x = x.float() if wide else x
            return x.clone().requires_grad_(), x.float().clone().requires_grad_()

        return draw

    @pytest.mark.parametrize("biased", [False, True])
    def test_linear(self, biased: bool, draw: Callable[..., Any], dtype: Any) -> None:
        (x, y), (weight, w), (bias, b) = draw(7, 19), draw(5, 19), draw(5)
        found = linear(x, weight, weight.detach().T.contiguous(), bias if biased else None)
        plain = y @ w.T + (b if biased else 0)
        inputs, copies = ([x, weight, bias], [y, w, b]) if biased else ([x, weight], [y, w])
        check_slopes(found, plain, draw(7, 5)[1].detach(), inputs, copies, dtype)

    def test_column_major(self, draw: Callable[..., Any], dtype: Any) -> None:
        for x in (draw(7, 19)[0].detach(), draw(19)[0].detach()):
            assert torch.equal(column_major(x), x)
        assert column_major(draw(7, 19)[0].detach()).T.is_contiguous()

    @pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.25])
    @pytest.mark.parametrize("n", [1, 16, 999])
    def test_choose(self, n: int, threshold: float, draw: Callable[..., Any], dtype: Any) -> None:
        scores = draw(n)[0].detach()
        scores[n // 2] = 0.0
        scores[n // 3] = threshold
        plain = (scores > threshold).to(dtype)
        assert choose(scores, threshold) == int(plain.sum(dtype=torch.float32))
        assert torch.equal(scores, plain)

    def test_rms_norm(self, draw: Callable[..., Any], dtype: Any) -> None:
        (x, y), (weight, _) = draw(5, 3, 19, wide=True), draw(19, wide=True)
        weight = weight.detach()
        plain = y * (y.square().mean(dim=-1, keepdim=True) + 1e-3).rsqrt() * weight
        check_slopes(rms_norm(x, weight, 1e-3, dtype), plain, draw(5, 3, 19)[1].detach(), [x], [y], dtype)

    @pytest.mark.parametrize("half", [3, 16, 20])
    def test_rotate(self, half: int, draw: Callable[..., Any], dtype: Any) -> None:
        x, y = draw(5, 3, 42)
        cos, sin = (draw(5, 1, half, wide=True)[0].detach() for _ in range(2))
        a, b, rest = y[..., :half], y[..., half : 2 * half], y[..., 2 * half :]
        plain = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
        check_slopes(rotate(x, cos, sin), plain, draw(5, 3, 42)[1].detach(), [x], [y], dtype)

    @pytest.mark.parametrize("window", [0, 1, 20])
    def test_causal_softmax(self, window: int, draw: Callable[..., Any], dtype: Any) -> None:
        x, y = draw(2, 3, 37, 37)
        here, there = torch.arange(37)[:, None], torch.arange(37)[None, :]
        seen = (there <= here) & (there > here - (window or 37))
        plain = (0.5 * y).masked_fill(~seen, -float("inf")).softmax(dim=-1)
        slope = draw(2, 3, 37, 37)[1].detach()
        check_slopes(causal_softmax(x, window, 0.5), plain, slope, [x], [y], dtype)

    @pytest.mark.parametrize(
        "kind", ["relu", "silu", "gelu", "gelu_tanh", "relu2", "fatrelu", "shifted_relu"]
    )
    @pytest.mark.parametrize("gated", [False, True])
    @pytest.mark.parametrize("masked", [False, True])
    def test_hidden_values(
        self, kind: str, gated: bool, masked: bool, draw: Callable[..., Any], dtype: Any
    ) -> None:
        (gate, g), (up, u) = draw(7, 37), draw(7, 37)
        chosen = (draw(7, 37)[0] > 0).to(dtype) if masked else None
        nn = torch.nn.functional
        act = {
            "relu": nn.relu,
            "silu": nn.silu,
            "gelu": nn.gelu,
            "gelu_tanh": lambda x: nn.gelu(x, approximate="tanh"),
            "relu2": lambda x: nn.relu(x).square(),
            "fatrelu": lambda x: x * (x > 0.3),
            "shifted_relu": lambda x: nn.relu(x - 0.3),
        }[kind]
        plain = act(g) * (u if gated else 1) * (chosen.float() if chosen is not None else 1)
        config: Any = SimpleNamespace(activation=kind, activation_threshold=0.3)
        found = hidden_values(gate, up if gated else None, config, chosen)
        inputs, copies = ([gate, up], [g, u]) if gated else ([gate], [g])
        check_slopes(found, plain, draw(7, 37)[1].detach(), inputs, copies, dtype)

    def test_hidden_values_of_drelu(self, draw: Callable[..., Any], dtype: Any) -> None:
        (gate, g), (up, u) = draw(7, 37), draw(7, 37)
        config: Any = SimpleNamespace(activation="drelu", activation_threshold=0.0)
        found, plain = hidden_values(gate, up, config), torch.relu(g) * torch.relu(u)
        check_slopes(found, plain, draw(7, 37)[1].detach(), [gate, up], [g, u], dtype)

    def test_spread_and_gather(self, draw: Callable[..., Any], dtype: Any) -> None:
        batch = Batch.of([np.arange(n, dtype=np.int32) for n in (3, 70, 5, 64)])
        (x, y), slope = draw(142, 4), draw(142, 4)[1].detach()
        placed = spread(x, batch.rows, batch.places)
        assert placed.shape == (sum(b * t for b, t in batch.shapes), 4)
        check_slopes(gather(2 * placed, batch.places), 2 * y, slope, [x], [y], dtype)


@pytest.mark.parametrize(
    "name", ["llama-biases", "qwen3", "gemma2", "opt-350m", "bloom", "neox", "mistral-window"]
)
@pytest.mark.parametrize("values", ["exact", "leading"])
def test_learns_in_every_kind_of_model(name: str, values: Any, tiny_folder: Callable[[str], Path]) -> None:
    opened = open_model(tiny_folder(name))
    config = opened.config
    options = AdaptOptions(density=0.3, tokens=1, learning_rate=2e-3, match_hidden=0.1)
    selectors = [Sketch(bits=4, threshold=0.0, values=values)] * config.n_layers
    held = leading_weights(config, selectors, "int8")
    learner = Student(config, opened.weights, options, torch.float32, threads=2, leading=held)
    opened.close()
    masks = PlanMasks(
        config,
        selectors,
        [0.3] * config.n_layers,
        codec="int8",
        masters=learner.masters,
        held=learner.held,
        dtype=torch.float32,
    )
    tokens = prompt(CASES[name])
    batches = [Batch.of([tokens[:20], tokens[20:33]]), Batch.of([tokens[33:]])]
    fixed = {n: v.copy() for n, v in learner.values().items() if n not in learner.masters}
    losses = []
    for _ in range(12):
        passes = [MaskPass(masks, learning=True) for _ in batches]
        losses.append(learner.step(batches, passes, 1.0))
        masks.follow(passes)
    assert losses[-1] < (0.8 if values == "exact" else 0.9) * losses[0]
    for n, value in fixed.items():
        np.testing.assert_array_equal(learner.values()[n], value)
