"""Training low-rank predictors: it learns, it is the same after a kill -9, and it fails loudly."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from changed import Changed
from dejavu.errors import CacheError, DejavuError, InputError, ModelFormatError, NumericsError
from dejavu.plan import LowRank, Products, checks
from dejavu.training import checkpoint as checkpoints
from dejavu.training import low_rank
from dejavu.training.corpus import Corpus
from dejavu.training.examples import Examples, Target
from dejavu.training.inputs import BlockInputs
from dejavu.training.label_learner import LabelLearner
from dejavu.training.learner import LowRankOptions
from dejavu.training.low_rank import State, Trained, train_low_rank
from dejavu.training.options import TrainOptions
from dejavu.training.progress import Silent
from dejavu.training.recipe import train_plan
from dejavu.training.size_learner import RIDGE, SizeLearner
from dejavu.training.stream import TokenStream
from dejavu.training.subject import Subject, open_subject
from tiny_chat import build_tiny_chat
from training_texts import documents, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dejavu.models.weights import Weights

pytest.importorskip("torch")

TARGETS = (Target("neurons", 16, 0.3), Target("heads", 4, 0.5))
OPTIONS = LowRankOptions(TARGETS, tokens=8_000, learn="labels", learning_rate=1e-2)
SIZES = LowRankOptions(TARGETS, tokens=8_000)
SETTINGS = {"model": "tiny"}


@dataclasses.dataclass
class Setup:
    subject: Subject
    stream: TokenStream

    @property
    def weights(self) -> Weights:
        return self.subject.opened.weights

    def examples(self, targets: tuple[Target, ...] = TARGETS, lookahead: int = 0) -> Examples:
        inputs = BlockInputs(self.subject.opened.config, self.subject.opened.weights)
        pieces = next(self.stream.batches(2000))[0]
        return Examples(self.subject.executor, inputs, pieces, targets, lookahead)


def build(folder: Path) -> Setup:
    model = build_tiny_chat(folder / "model")
    corpus = Corpus([write_jsonl(folder / "text.jsonl", documents(150, 20))], seed=0)
    subject = open_subject(str(model), codec="f32", leading=0, executor="reference")
    return Setup(subject, TokenStream(corpus, subject.tokenizer, context=512))


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    made = build(tmp_path_factory.mktemp("training"))
    yield made
    made.subject.close()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "CHECKPOINT_STEPS", 2)
    monkeypatch.setattr(low_rank, "VALIDATION_STEPS", 4)


def assert_equal(found: Trained, expected: Trained) -> None:
    assert found.agreement == expected.agreement
    assert found.tokens == expected.tokens
    for block, predictors in expected.predictors.items():
        for one, other in zip(found.predictors[block], predictors, strict=True):
            for name in ("a", "b", "bias", *(("spread",) if isinstance(other, Products) else ())):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(("learn", "hidden"), [("sizes", "linear"), ("labels", "linear"), ("labels", "relu")])
@pytest.mark.parametrize("lookahead", [0, 1])
def test_learns(setup: Setup, tmp_path: Path, learn: Any, hidden: Any, lookahead: int) -> None:
    states: list[State] = []
    options = dataclasses.replace(OPTIONS, learn=learn, hidden=hidden, lookahead=lookahead)
    trained = train_low_rank(
        setup.examples(lookahead=lookahead),
        setup.stream,
        options,
        setup.weights,
        checkpoint=tmp_path / "c",
        settings=SETTINGS,
        report=states.append,
    )
    assert states[-1].tokens == trained.tokens >= OPTIONS.tokens
    assert np.mean(states[-1].losses) < 0.95 * np.mean(states[0].losses)
    layers = len(trained.predictors["neurons"])
    assert len(states[0].losses) == 2 * layers
    assert [len(found) for found in trained.agreement.values()] == [layers, layers]
    found = {
        block: (np.mean([a.recall for a in sets]), np.mean([a.precision for a in sets]))
        for block, sets in trained.agreement.items()
    }
    assert found["neurons"][0] > 0.3 + 0.25  # chance is the density
    assert found["heads"][0] > 0.5 + 0.05
    assert found["heads"][0] == pytest.approx(found["heads"][1])  # both sets have two of four heads
    assert "neurons recall 0." in str(states[-1])
    predictor = trained.predictors["neurons"][1]
    assert (predictor.lookahead, predictor.density) == (lookahead, 0.3)
    assert predictor.a.shape == (16, 32)
    assert predictor.b.shape == ((96 if learn == "sizes" else 48), 16)
    assert isinstance(predictor, Products) if learn == "sizes" else predictor.hidden == hidden


def test_gradients_are_those_of_the_loss(setup: Setup) -> None:
    import torch

    examples = setup.examples()
    for hidden in ("linear", "relu"):
        options = dataclasses.replace(OPTIONS, hidden=hidden)
        trainer = LabelLearner(examples, options, None)
        trainer._type = torch.float32
        rng = np.random.default_rng(0)
        y = rng.standard_normal((40, 32), np.float32)
        label = rng.random((40, 48)) < 0.2
        net = [torch.from_numpy(rng.standard_normal(s, np.float32)) for s in ((16, 32), (48, 16), (48,))]
        loss = trainer._gradients(net, y, label)
        copies = [p.clone().requires_grad_() for p in net]
        middle = torch.from_numpy(y) @ copies[0].T
        z = (middle.relu() if hidden == "relu" else middle) @ copies[1].T + copies[2]
        truth = torch.from_numpy(label).float()
        share = float(label.mean())
        weight = torch.where(truth > 0, 0.5 / share, 0.5 / (1 - share))
        expected = torch.nn.functional.binary_cross_entropy_with_logits(z, truth, weight)
        expected.backward()
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
        for p, copy in zip(net, copies, strict=True):
            torch.testing.assert_close(p.grad, copy.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [3, 12])
@pytest.mark.parametrize("block", ["neurons", "heads"])
@pytest.mark.parametrize("lookahead", [0, 1])
def test_no_map_of_the_rank_estimates_better(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, rank: int, block: Any, lookahead: int
) -> None:
    """Against alternating least squares on the same tokens, with the same ridge, in several batches."""
    examples = setup.examples((Target(block, rank, 0.3),))
    rng = np.random.default_rng(0)
    d, layers, layer = 32, setup.subject.opened.config.n_layers, 1
    x = rng.standard_normal((900, d)) * np.linspace(0.1, 3, d) + 0.5
    ahead = x @ rng.standard_normal((d, d)) / 5 + rng.standard_normal((900, d))
    heads = np.abs(x @ rng.standard_normal((d, 4)) + rng.standard_normal((900, 4)))
    target = heads if block == "heads" else ahead if lookahead else x

    def inputs_of(pieces: Any) -> Any:
        part = slice(300 * pieces[0], 300 * pieces[0] + 300)
        for at in range(layers):
            yield block, at, x[part].astype(np.float32), target[part].astype(np.float32)

    weights = setup.subject.opened.weights
    monkeypatch.setattr(examples, "inputs_of", inputs_of)
    options = dataclasses.replace(SIZES, targets=examples.targets, lookahead=lookahead)
    learner = SizeLearner(examples, options, weights, None)
    for number in range(3):
        learner.step([number], 0.0)  # type: ignore[list-item]
    values = heads
    if block == "neurons":
        names = [f"layers.{layer}.{part}.weight" for part in ("gate", "up")]
        values = target @ np.concatenate([weights.read(name) for name in names]).T
    rounded = learner.predictors()[block][layer]  # a to eight bits, b to four
    with monkeypatch.context() as patch:
        for check in ("int8_rows", "leading_rows"):
            patch.setattr(checks, check, lambda _, rows: np.asarray(rows, np.float32))
        ours, left = learner._solve(examples.targets[0], layer)
    deviations = x - x.mean(axis=0)
    wanted = values - values.mean(axis=0)
    ridge = RIDGE * np.diag(np.square(deviations).sum(axis=0))

    def cost(a: Any, b: Any) -> float:
        pull = np.trace(b @ a @ ridge @ a.T @ b.T)
        return float(np.square(deviations @ a.T @ b.T - wanted).sum() + pull)

    a = rng.standard_normal((min(rank, values.shape[1]), d))
    for _ in range(300):
        z = deviations @ a.T
        b = np.linalg.lstsq(z.T @ z + a @ ridge @ a.T, z.T @ wanted, rcond=None)[0].T
        a = np.linalg.pinv(b) @ np.linalg.solve(deviations.T @ deviations + ridge, deviations.T @ wanted).T
    assert cost(ours.a, ours.b) < 1.001 * cost(a, b)
    for found in (ours, rounded):
        off = values - x @ (found.b @ found.a).T - found.bias
        np.testing.assert_allclose(off.mean(axis=0), 0, atol=1e-3 * np.abs(values).max())
        if isinstance(found, Products):  # it is of the rounded map
            np.testing.assert_allclose(off.std(axis=0), found.spread, rtol=2e-3)
    off = values - x @ (ours.b @ ours.a).T
    assert left == pytest.approx(off.var(axis=0).sum() / values.var(axis=0).sum(), rel=2e-3)
    assert isinstance(rounded, LowRank if block == "heads" else Products)


def test_estimates_have_the_biases_of_the_model(setup: Setup) -> None:
    config = dataclasses.replace(setup.subject.opened.config, biases=("gate", "up"))
    examples: Any = SimpleNamespace(config=config)
    shifts = {f"layers.0.{part}.bias": np.full(48, k, np.float32) for k, part in enumerate(("gate", "up"), 1)}
    weights = Changed(setup.subject.opened.weights, shifts)
    learner = SizeLearner(examples, dataclasses.replace(SIZES, targets=TARGETS[:1]), weights, None)
    plain = SizeLearner(
        examples, learner._options, Changed(weights, {k: 0 * v for k, v in shifts.items()}), None
    )
    v = np.random.default_rng(0).standard_normal((50, 33)).astype(np.float32)
    v[:, -1] = 1
    for made in (learner, plain):
        made._sums["neurons", 0] += v.T @ v
    moved, still = (made._solve(TARGETS[0], 0)[0].bias for made in (learner, plain))
    np.testing.assert_allclose(moved - still, np.repeat([1.0, 2.0], 48), atol=1e-5)


@pytest.mark.parametrize("options", [OPTIONS, SIZES], ids=lambda x: x.learn)
def test_same_seed_same_predictors(setup: Setup, tmp_path: Path, options: LowRankOptions) -> None:
    runs = [
        train_low_rank(
            setup.examples(),
            setup.stream,
            options,
            setup.weights,
            checkpoint=tmp_path / str(i),
            settings=SETTINGS,
        )
        for i in range(2)
    ]
    assert_equal(runs[0], runs[1])


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from dejavu.training import low_rank
low_rank.CHECKPOINT_STEPS, low_rank.VALIDATION_STEPS = 2, 4
import test_training_low_rank as t
setup, options = t.build(Path(sys.argv[1])), getattr(t, sys.argv[3])
steps = 0
def report(state):
    global steps
    steps += 1
    if steps == 5:
        os.kill(os.getpid(), signal.SIGKILL)
low_rank.train_low_rank(
    setup.examples(), setup.stream, options, setup.weights, checkpoint=Path(sys.argv[2]), settings=t.SETTINGS, report=report
)
"""


@pytest.mark.parametrize("name", ["OPTIONS", "SIZES"])
def test_killed_and_resumed_is_as_if_nothing_had_happened(setup: Setup, tmp_path: Path, name: str) -> None:
    options = globals()[name]
    whole = train_low_rank(
        setup.examples(),
        setup.stream,
        options,
        setup.weights,
        checkpoint=tmp_path / "whole",
        settings=SETTINGS,
    )
    kept = tmp_path / "kept"
    script = KILLED.format(tests=str(Path(__file__).parent))
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "other"), str(kept), name],
        check=False,
        env=dict(os.environ),
    )
    assert result.returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="left of an interrupted training"):
        train_low_rank(
            setup.examples(), setup.stream, options, setup.weights, checkpoint=kept, settings=SETTINGS
        )
    states: list[State] = []
    resumed = train_low_rank(
        setup.examples(),
        setup.stream,
        options,
        setup.weights,
        checkpoint=kept,
        resume=True,
        settings=SETTINGS,
        report=states.append,
    )
    assert 4000 < states[0].tokens < 7000  # not from the start
    assert_equal(resumed, whole)
    again = train_low_rank(
        setup.examples(),
        setup.stream,
        options,
        setup.weights,
        checkpoint=kept,
        resume=True,
        settings=SETTINGS,
    )
    assert_equal(again, whole)  # a finished training is kept until the plan is saved


@pytest.mark.parametrize("options", [OPTIONS, SIZES], ids=lambda x: x.learn)
def test_nan_keeps_the_last_checkpoint(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: LowRankOptions
) -> None:
    def fail_later(examples: Examples) -> Callable[..., Any]:
        real, calls = getattr(examples, name), 0

        def of(pieces: Any) -> Any:
            nonlocal calls
            calls += len(pieces) > 1  # not those of the validation
            for block, layer, y, sizes in real(pieces):
                yield block, layer, np.where(calls < 4, y, np.nan).astype(np.float32), sizes

        return of

    examples, name = setup.examples(), "inputs_of" if options.learn == "sizes" else "of"
    monkeypatch.setattr(examples, name, fail_later(examples))
    path = tmp_path / "c"
    with pytest.raises(NumericsError, match=r"no longer finite after 3\d+ tokens; .* holds the state before"):
        train_low_rank(examples, setup.stream, options, setup.weights, checkpoint=path, settings=SETTINGS)
    arrays, state = checkpoints.load_checkpoint(path, SETTINGS)
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert state["tokens"] > 2000


def test_full_disk_keeps_the_last_checkpoint(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    checkpoints.save_checkpoint(path, {"x": np.ones(3, np.float32)}, {"settings": SETTINGS})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheError, match="No space left") as caught:
        checkpoints.save_checkpoint(path, {"x": np.zeros(3, np.float32)}, {"settings": SETTINGS})
    assert "--resume" in str(caught.value.fix)
    np.testing.assert_array_equal(checkpoints.load_checkpoint(path, SETTINGS)[0]["x"], 1)


def test_resume_refuses_what_does_not_fit(setup: Setup, tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(InputError, match="no checkpoint"):
        train_low_rank(
            setup.examples(),
            setup.stream,
            OPTIONS,
            setup.weights,
            checkpoint=path,
            resume=True,
            settings=SETTINGS,
        )
    checkpoints.save_checkpoint(path, {}, {"settings": {"model": "another"}})
    with pytest.raises(InputError, match="'another'"):
        checkpoints.load_checkpoint(path, SETTINGS)
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ModelFormatError, match="damaged"):
            checkpoints.load_checkpoint(path, SETTINGS)


def test_too_little_text(setup: Setup, tmp_path: Path) -> None:
    corpus = Corpus([write_jsonl(tmp_path / "a.jsonl", documents(20, 5))], seed=0)
    stream = TokenStream(corpus, setup.subject.tokenizer, context=512)
    with pytest.raises(InputError, match="at least 4096 are needed"):
        train_low_rank(
            setup.examples(), stream, OPTIONS, setup.weights, checkpoint=tmp_path / "c", settings=SETTINGS
        )


def test_says_how_to_get_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from dejavu.training import missing

    monkeypatch.setattr(missing, "importlib", SimpleNamespace(import_module=__import__))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DejavuError, match="torch") as caught:
        missing.import_torch()
    assert "pip install '.[train]' in a clone of dejavu" in str(caught.value.fix)


def test_sizes_need_none(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    options = dataclasses.replace(SIZES, tokens=4096)
    trained = train_low_rank(
        setup.examples(), setup.stream, options, setup.weights, checkpoint=tmp_path / "c", settings=SETTINGS
    )
    assert trained.tokens >= 4096


def test_the_verb_says_it_before_it_computes(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(setup.subject.executor, "trace", lambda *_, **__: pytest.fail("computed something"))
    corpus = Corpus([write_jsonl(tmp_path / "a.jsonl", documents(150, 20))], seed=0)
    options = TrainOptions(selector="low_rank", density=0.5, search_tokens=150, learn="labels")
    with pytest.raises(DejavuError, match="torch"):
        train_plan(setup.subject, corpus, options, checkpoint=tmp_path / "c", progress=Silent())
