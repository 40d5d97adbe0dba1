"""The torch decoder against the reference, masks against its selectors, and the loss against autograd."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dejavu import codecs, nested
from dejavu.errors import UnsupportedModelError
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, LayerPlan, LowRank, Oracle, Sketch, Threshold
from dejavu.reference import ReferenceExecutor
from dejavu.training.quantiles import Quantiles
from tiny_chat import build_tiny_chat
from tiny_models import CASES, prompt, relative_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

torch = pytest.importorskip("torch")

from dejavu.adapt.divergence import Head, divergence  # noqa: E402
from dejavu.adapt.leading import leading  # noqa: E402
from dejavu.adapt.masks import MaskPass, PlanMasks  # noqa: E402
from dejavu.adapt.model import Batch, Decoder, read_tensors  # noqa: E402
from dejavu.adapt.operations import rms_norm, rotate  # noqa: E402
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


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["sketch", "threshold", "oracle", "low_rank"])
def test_masks_are_those_of_the_reference(kind: str, codec: Any, tmp_path: Path) -> None:
    opened = open_model(build_tiny_chat(tmp_path / "model"))
    config, rng = opened.config, np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, 50).astype(np.int32)
    selectors: dict[str, Any] = {
        "sketch": Sketch(bits=3 if codec == "int8" else 4, lookahead=1, threshold=0.0),
        "threshold": Threshold(threshold=0.0),
        "oracle": Oracle(threshold=0.0),
        "low_rank": LowRank(
            a=rng.standard_normal((4, config.d_model), np.float32),
            b=rng.standard_normal((4, config.d_ff), np.float32),
            bias=rng.standard_normal(config.d_ff, np.float32),
            hidden="relu",
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
        config, [selector] * 2, [0.4] * 2, codec=codec, masters=masters, dtype=torch.float32, threads=1
    )
    decoder, batch = Decoder(config, tensors), Batch.of([tokens])
    scores = [Quantiles(), Quantiles()]
    with torch.no_grad():  # without thresholds, a pass goes by its own quantiles
        decoder(batch, MaskPass(masks, collect=scores))
    for layer, found in enumerate(scores):
        masks.settle(layer, found)
    run = MaskPass(masks)
    with torch.no_grad():
        found = Head.of(config, tensors, torch.float32).log_probs(decoder(batch, run))
    assert run.densities == pytest.approx([0.4, 0.4], abs=0.01)
    layers = [
        LayerPlan(neurons=dataclasses.replace(selector, threshold=threshold))
        for threshold in masks.thresholds
    ]
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
    masks = PlanMasks(config, [sketch] * 2, [0.3, 0.999], codec="int8", masters=tensors, dtype=torch.float32)
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
    found = divergence(ours, teacher.float(), Head(weight.float(), bias.float(), cap), loss)
    found.backward()
    if cap or loss != "forward-kl":
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    else:  # of a part of the tokens
        assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=0.2)
    torch.testing.assert_close(ours.grad.double(), slope, rtol=1e-3, atol=1e-6)


def test_gradients_of_operations() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, weight, 1e-3), (x,))
    cos, sin = (torch.randn(5, 1, 3, generator=generator) for _ in range(2))
    ours, plain = (x.detach().float().requires_grad_() for _ in range(2))
    a, b, rest = plain[..., :3], plain[..., 3:6], plain[..., 6:]
    expected = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
    found = rotate(ours, cos, sin)
    slope = torch.randn(found.shape, generator=generator)
    found.backward(slope)
    expected.backward(slope)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.grad, plain.grad)


@pytest.mark.parametrize(
    "name", ["llama-biases", "qwen3", "gemma2", "opt-350m", "bloom", "neox", "mistral-window"]
)
def test_learns_in_every_kind_of_model(name: str, tiny_folder: Callable[[str], Path]) -> None:
    opened = open_model(tiny_folder(name))
    config = opened.config
    options = AdaptOptions(density=0.3, tokens=1, learning_rate=2e-3, match_hidden=0.1)
    learner = Student(config, opened.weights, options, torch.float32, threads=2)
    opened.close()
    sketch = Sketch(bits=4, threshold=0.0)
    masks = PlanMasks(
        config,
        [sketch] * config.n_layers,
        [0.3] * config.n_layers,
        codec="int8",
        masters=learner.masters,
        dtype=torch.float32,
    )
    tokens = prompt(CASES[name])
    batches = [Batch.of([tokens[:20], tokens[20:33]]), Batch.of([tokens[33:]])]
    fixed = {n: v.copy() for n, v in learner.values().items() if n not in learner.masters}
    losses = []
    for _ in range(12):
        passes = [MaskPass(masks, learning=True) for _ in batches]
        losses.append(learner.step(batches, passes, 0.03))
        masks.follow(passes)
    assert losses[-1] < 0.8 * losses[0]
    for n, value in fixed.items():
        np.testing.assert_array_equal(learner.values()[n], value)
