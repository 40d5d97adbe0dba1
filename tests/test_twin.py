"""`Twin` and `Gates`: what is written computes what was trained, and what cannot be written is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.errors import UnsupportedModelError
from dejavu.models.folder_writer import write_folder
from dejavu.models.loading import open_model
from dejavu.reference import ReferenceExecutor
from tiny_models import CASES, prompt, relative_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

torch = pytest.importorskip("torch")

from dejavu.adapt.gates import Gates  # noqa: E402
from dejavu.adapt.masks import MaskPass  # noqa: E402
from dejavu.adapt.model import Batch  # noqa: E402
from dejavu.adapt.options import AdaptOptions  # noqa: E402
from dejavu.adapt.regress import Regressor  # noqa: E402
from dejavu.adapt.student import Student  # noqa: E402
from dejavu.adapt.twin import LEAST, Twin  # noqa: E402

MODELS: list[tuple[str, Any]] = [
    *((name, kind) for name in ("llama", "llama-tail") for kind in ("relu", "shifted", "fatrelu", "drelu")),
    ("llama-biases", "relu"),
    ("llama-biases", "drelu"),
    ("qwen2", "shifted"),
    ("qwen3-biases", "fatrelu"),
    ("mistral-window", "shifted"),
    ("falcon", "shifted"),
    ("opt-gelu", "relu"),
    ("neox", "relu"),
]


def student(
    folder: Path, kind: Any, *, of: type[Student] = Student, rate: float = 3e-3
) -> tuple[Twin, Student]:
    opened = open_model(folder)
    twin = Twin.of(opened.config, kind)
    options = AdaptOptions(density=0.3, tokens=1, activation=kind, learning_rate=rate)
    learner = of(opened.config, opened.weights, options, torch.float32, 2, twin=twin.config)
    opened.close()
    return twin, learner


@pytest.mark.parametrize(("name", "kind"), MODELS)
def test_what_is_written_is_what_was_trained(
    name: str, kind: Any, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    twin, learner = student(tiny_folder(name), kind)
    gates = Gates(twin, [0.3] * twin.config.n_layers)
    tokens = prompt(CASES[name])
    batches = [Batch.of([tokens[:20]]), Batch.of([tokens[20:]])]
    for _ in range(6):
        passes = [MaskPass(gates, learning=True) for _ in batches]
        assert learner.step(batches, passes, 0.03) > 0
        gates.follow(passes)
    run = MaskPass(gates)
    with torch.no_grad():
        expected = learner.head.log_probs(learner.decoder(Batch.of([tokens]), run)).numpy()
    config, values = twin.publish(gates.thresholds, learner.values())
    write_folder(tmp_path / "twin", config, values.__getitem__)
    opened = open_model(tmp_path / "twin")
    assert opened.config.activation == {"shifted": "shifted_relu"}.get(kind, kind)
    reference = ReferenceExecutor(opened.config, opened.weights)
    logits = reference.prefill(tokens, reference.new_cache(), all_logits=True)
    found = torch.log_softmax(torch.from_numpy(logits), dim=-1).numpy()
    assert relative_error(found, expected) < 1e-5
    trace = reference.trace(tokens)
    opened_gates = trace.gate if kind == "drelu" else trace.hidden  # where relu(up) makes more zeros
    np.testing.assert_allclose((opened_gates != 0).mean(axis=(1, 2)), run.densities, atol=2e-3)
    opened.close()


@pytest.mark.parametrize(("name", "kind"), [("llama", "relu"), ("neox", "relu"), ("falcon", "shifted")])
def test_mlps_learn_by_themselves(name: str, kind: Any, tiny_folder: Callable[[str], Path]) -> None:
    twin, learner = student(tiny_folder(name), kind, of=Regressor, rate=1e-2)
    before = {n: v.copy() for n, v in learner.values().items()}
    natural = Gates(twin, [1.0] * twin.config.n_layers)
    tokens = prompt(CASES[name])
    batches = [Batch.of([tokens[:20]]), Batch.of([tokens[20:]])]
    errors = []
    for _ in range(20):
        passes = [MaskPass(natural, learning=True) for _ in batches]
        errors.append(learner.step(batches, passes, 0.03))
        natural.follow(passes)
    assert errors[-1] < 0.7 * errors[0]
    assert natural.thresholds == [max(0.0, twin.least_threshold)] * twin.config.n_layers
    changed = {n for n, v in learner.values().items() if not np.array_equal(v, before[n])}
    assert {n.split(".")[2] for n in changed} <= {"gate", "up", "down"}
    assert {n for n in before if n.endswith("up.weight")} <= changed


def test_thresholds_rise_from_zero_to_the_target(tiny_folder: Callable[[str], Path]) -> None:
    twin, learner = student(tiny_folder("llama"), "relu")
    gates = Gates(twin, [0.2] * twin.config.n_layers)
    tokens = prompt(CASES["llama"])
    seen = []
    for annealed in (0.0, 0.5, 1.0):
        gates.restart()
        passes = [MaskPass(gates, annealed=annealed, learning=True)]
        with torch.no_grad():
            learner.decoder(Batch.of([tokens]), passes[0])
        gates.follow(passes)
        seen.append((np.array(gates.thresholds), np.mean(passes[0].densities)))
    assert (seen[0][0] == 0).all()
    assert seen[2][1] == pytest.approx(0.2, abs=0.02)
    assert seen[0][1] > seen[1][1] > seen[2][1]
    gates.aim([0.1] * twin.config.n_layers, start=[0.2] * twin.config.n_layers)
    middle = MaskPass(gates, annealed=0.5, learning=True)
    gates.restart()
    with torch.no_grad():
        learner.decoder(Batch.of([tokens]), middle)
    assert np.mean(middle.densities) == pytest.approx(0.15, abs=0.02)


def test_thresholds_in_weights_stay_above_zero(tiny_folder: Callable[[str], Path]) -> None:
    twin, learner = student(tiny_folder("llama"), "shifted")
    gates = Gates(twin, [0.9] * twin.config.n_layers)
    run = MaskPass(gates, learning=True)
    with torch.no_grad():
        learner.decoder(Batch.of([prompt(CASES["llama"])]), run)
    gates.follow([run])
    assert gates.thresholds == [LEAST] * twin.config.n_layers


@pytest.mark.parametrize(
    ("name", "kind", "fix"),
    [
        ("qwen3", "relu", "--activation shifted"),
        ("mistral", "relu", "--activation shifted"),
        ("opt-bare", "relu", "--activation shifted"),
        ("opt-gelu", "shifted", "--activation relu"),
        ("opt-gelu", "drelu", "--activation relu"),
        ("llama-biases", "fatrelu", "--activation relu"),
        ("gemma2", "shifted", "--activation keep"),
        ("bloom", "relu", "--activation"),
    ],
)
def test_what_cannot_be_written_is_refused(
    name: str, kind: Any, fix: str, tiny_folder: Callable[[str], Path]
) -> None:
    opened = open_model(tiny_folder(name))
    with pytest.raises(UnsupportedModelError) as caught:
        Twin.of(opened.config, kind)
    assert fix in str(caught.value.fix)
    opened.close()
