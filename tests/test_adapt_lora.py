"""`dejavu adapt --method lora`: what learns, the adapter that comes of it, and runs that are interrupted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from dejavu import LLM, SamplingParams
from dejavu.cli.app import run
from dejavu.engine import NativeExecutor
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan
from tiny_chat import FF, build_tiny_chat
from tiny_chat import D as WIDTH
from training_texts import documents, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

torch = pytest.importorskip("torch")

from dejavu.adapt import distill, recipe, student  # noqa: E402
from dejavu.adapt.divergence import Head  # noqa: E402
from dejavu.adapt.low_rank_update import LowRankShare, first_factors  # noqa: E402
from dejavu.adapt.model import Batch, Decoder  # noqa: E402
from dejavu.adapt.options import AdaptOptions  # noqa: E402
from dejavu.adapt.share import ATTENTION  # noqa: E402
from dejavu.errors import InputError  # noqa: E402
from dejavu.training.checkpoint import load_checkpoint  # noqa: E402

RANK = 4


class StopError(Exception):
    """Ends a run where it is raised, as kill -9 would as far as the disk can tell."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt-lora")
    build_tiny_chat(folder / "model")
    write_jsonl(folder / "text.jsonl", documents(300, 20))
    return folder


def command(folder: Path, output: Path, *more: str, tokens: int = 8000) -> list[str]:
    text = ["--text", str(folder / "text.jsonl"), "-o", str(output), "--method", "lora", "--rank", str(RANK)]
    fast = ["--tokens", str(tokens), "--learning-rate", "1e-2", "--batch-tokens", "256", "--threads", "1"]
    aim = more if "--frontier" in more else ("--density", "0.25", *more)
    return ["adapt", str(folder / "model"), *text, *fast, "--json", *aim]


@pytest.fixture(scope="module")
def adapted(folder: Path) -> tuple[Path, student.Student]:
    """The output, and the student as it was when it was written."""
    seen: list[student.Student] = []
    write = recipe._Recipe._write

    def watched(self: Any, target: Path, learned: student.Student, *more: Any) -> None:
        seen.append(learned)
        write(self, target, learned, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe._Recipe, "_write", watched)
        assert run(command(folder, folder / "adapted")) == 0
    return folder / "adapted", seen[0]


def test_learns_under_its_masks(adapted: tuple[Path, student.Student]) -> None:
    found = json.loads((adapted[0] / "adaptation.json").read_text())
    assert found["adapter"] == {"rank": RANK, "alpha": RANK}
    assert found["curve"][-1]["divergence"] < 0.95 * found["curve"][0]["divergence"]
    assert found["native"]["densities"] == pytest.approx(found["densities"], abs=0.03)


def test_what_is_in_the_folder(folder: Path, adapted: tuple[Path, student.Student]) -> None:
    output = adapted[0]
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder / "model")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", RANK, RANK)
    linears = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(config["target_modules"]) == linears
    arrays = load_file(output / "adapter_model.safetensors")
    assert len(arrays) == 2 * 2 * len(linears)
    assert {x.dtype.name for x in arrays.values()} == {"float16"}
    down = "base_model.model.model.layers.1.mlp.down_proj"
    assert arrays[f"{down}.lora_A.weight"].shape == (RANK, FF)
    assert arrays[f"{down}.lora_B.weight"].shape == (WIDTH, RANK)
    assert {"plan", "tokenizer.json", "README.md", "curve.svg"} <= {x.name for x in output.iterdir()}
    assert not {"config.json", "model.safetensors"} & {x.name for x in output.iterdir()}
    card = (output / "README.md").read_text()
    assert "library_name: peft" in card
    assert f"LoRA of rank {RANK}, alpha {RANK}" in card


def test_opens_as_what_was_trained(adapted: tuple[Path, student.Student]) -> None:
    output, learned = adapted
    opened, values = open_model(output), learned.values()
    for name in opened.weights.names():
        found = opened.weights.read(name)
        if name in learned.factors():
            a, b = (x.astype(np.float16).astype(np.float32) for x in learned.factors()[name])
            original = load_original(output)[name]
            np.testing.assert_allclose(found, original + b @ a, atol=1e-6)
        np.testing.assert_allclose(found, values[name], atol=3e-3 * np.abs(values[name]).max())
    opened.close()
    tokens = np.arange(3, 40, dtype=np.int32)
    native = NativeExecutor.load(output, codec="f32", cache=False, threads=1)
    found = native.prefill(tokens, native.new_cache(), all_logits=True)
    native.close()
    config, tensors = learned.decoder.config, {name: torch.from_numpy(x) for name, x in values.items()}
    hidden = Decoder(config, tensors)(Batch.of([tokens]))
    expected = Head.of(config, tensors, torch.float32).log_probs(hidden)
    difference = torch.log_softmax(torch.from_numpy(found), dim=-1) - expected
    assert float(difference.abs().max()) < 5e-3 * float(np.abs(found).max())


def load_original(output: Path) -> dict[str, np.ndarray]:
    base = open_model(output.parent / "model")
    found = {name: base.weights.read(name) for name in base.weights.names()}
    base.close()
    return found


def test_generates_by_its_plan(
    adapted: tuple[Path, student.Student], capsys: pytest.CaptureFixture[str]
) -> None:
    output = adapted[0]
    with LLM.from_pretrained(str(output), fallback=False, cache=False) as llm:
        assert llm.plan is not None  # which is taken in the codec that it was made for alone
        assert llm.generate("the cat", SamplingParams(max_tokens=4, ignore_eos=True)).text
    capsys.readouterr()
    assert run(["generate", "the cat", "-m", str(output), "--max-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_an_adapter_is_not_adapted(
    folder: Path, adapted: tuple[Path, student.Student], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    verb, _, *rest = command(folder, tmp_path / "more")
    assert run([verb, str(adapted[0]), *rest]) == InputError.exit_code
    assert "a whole one is needed" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_resumed_run_is_exactly_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "CHECKPOINT_STEPS", 6)
    assert run(command(folder, folder / "whole", tokens=4000)) == 0
    resumed(folder, folder / "parts", monkeypatch)
    assert run(command(folder, folder / "parts", "--alpha", "8", "--resume", tokens=4000)) == 8
    assert run(command(folder, folder / "parts", "--resume", tokens=4000)) == 0
    same(folder / "whole", folder / "parts")


def test_adapters_hold_leading_values(folder: Path) -> None:
    output = folder / "leading"
    assert run(command(folder, output, "--values", "leading", tokens=3000)) == 0
    found = json.loads((output / "adaptation.json").read_text())
    assert found["native"]["densities"] == pytest.approx(found["densities"], abs=0.03)
    assert found["curve"][-1]["divergence"] < 1.2 * found["curve"][0]["divergence"]
    assert {x.neurons.values for x in AccessPlan.load(output / "plan").layers} == {"leading"}


def resumed(folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch, *more: str, at: int = 9) -> None:
    """Stop a run after some steps; its checkpoint holds factors and moments alone."""
    steps = student.Student.step

    def stop(self: student.Student, *args: Any) -> float:
        if self.steps == at:
            raise StopError
        return steps(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(student.Student, "step", stop)
        assert run(command(folder, output, *more, tokens=4000)) == 70
    arrays, _ = load_checkpoint(output.with_name(f"{output.name}.checkpoint"), {})
    assert {name.split(".")[4] for name in arrays} == {"A", "B"}
    assert sum(x.size for x in arrays.values()) == 3 * 2 * RANK * (
        4 * WIDTH + 2 * (WIDTH + WIDTH // 2) + 3 * (WIDTH + FF)
    )


def same(one: Path, other: Path) -> None:
    files = [(x / "adapter_model.safetensors").read_bytes() for x in (one, other)]
    assert files[0] == files[1]


def test_frontier_of_adapters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "CHECKPOINT_STEPS", 4)
    more = ("--frontier", "0.6,0.3")
    assert run(command(folder, folder / "frontier", *more, tokens=4000)) == 0
    found = json.loads((folder / "frontier" / "frontier.json").read_text())
    assert [row["kind"] for row in found["rows"]].count("adapted") == 2
    opened = [open_model(folder / "frontier" / name) for name in ("0.6", "0.3")]
    first, last = (model.weights.read("layers.1.up.weight") for model in opened)
    rank = np.linalg.matrix_rank(last - load_original(folder / "frontier")["layers.1.up.weight"], tol=1e-4)
    assert (first != last).any()
    assert rank <= RANK  # the base of both is the original
    for model in opened:
        model.close()
    resumed(folder, folder / "again", monkeypatch, *more, at=12)
    assert run(command(folder, folder / "again", *more, "--resume", tokens=4000)) == 0
    for name in ("0.6", "0.3"):
        same(folder / "frontier" / name, folder / "again" / name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_projections(dtype: torch.dtype) -> None:
    """Of a loss of W = W0 + s B A; what attention learns, it learns more slowly."""
    generator = torch.Generator().manual_seed(1)
    names = ["layers.0.q.weight", "layers.0.up.weight"]
    originals = {name: torch.randn(7, 5, generator=generator) for name in names}
    factors = first_factors(originals, 3, 0)
    assert all(not b.any() and a.std() > 0.2 for a, b in factors.values())
    for _, b in factors.values():
        b.normal_(generator=generator)
    wanted = {name: [x.clone().requires_grad_() for x in pair] for name, pair in factors.items()}
    masters = {name: originals[name].clone() for name in names}
    used = {name: master.to(dtype).requires_grad_() for name, master in masters.items()}
    slopes = {name: torch.randn(7, 5, generator=generator).to(dtype) for name in names}
    share = LowRankShare(names, masters, used, {}, {}, originals=originals, factors=factors, scale=2.0)
    total = 0.0
    for name in names:
        used[name].grad = slopes[name].clone()
        a, b = wanted[name]
        (2 * (b @ a) * slopes[name].float()).sum().backward()
        total += float(a.grad.square().sum() + b.grad.square().sum())
    assert share.take_gradients() == pytest.approx(total, rel=1e-5)
    before = {name: [x.clone() for x in pair] for name, pair in factors.items()}
    share.update(0.01, 0.5)
    moved = []
    for name in names:
        a, b = factors[name]
        torch.testing.assert_close(a.grad, 0.5 * wanted[name][0].grad)
        torch.testing.assert_close(b.grad, 0.5 * wanted[name][1].grad)
        torch.testing.assert_close(masters[name], originals[name] + 2 * b @ a)
        torch.testing.assert_close(used[name].detach(), masters[name].to(dtype))
        moved.append(float((b - before[name][1]).abs().max()))
    assert moved[0] == pytest.approx(ATTENTION * moved[1], rel=1e-3)


def test_first_factors_change_nothing_and_depend_on_the_seed() -> None:
    weights = {"a": torch.randn(6, 400), "b": torch.randn(6, 400)}
    found, other = first_factors(weights, 8, 0), first_factors(weights, 8, 1)
    assert float(found["a"][0].std()) == pytest.approx(400**-0.5, rel=0.1)
    assert not torch.equal(found["a"][0], found["b"][0])
    assert not torch.equal(found["a"][0], other["a"][0])
    assert not found["a"][1].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "full", "rank": 8}, "low-rank updates"),
        ({"method": "full", "alpha": 8}, "low-rank updates"),
        ({"method": "lora", "rank": 0}, "rank: 0"),
        ({"method": "lora", "activation": "relu"}, "another activation"),
        ({"method": "dora"}, "method 'dora' is unknown"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdaptOptions(density=0.5, tokens=1000, **options)


def test_default_rank_and_alpha() -> None:
    make: Callable[..., AdaptOptions] = AdaptOptions
    assert make(density=0.5, tokens=1).adapter is None
    assert make(density=0.5, tokens=1, method="lora").adapter == (32, 32)
    assert make(density=0.5, tokens=1, method="lora", rank=8, alpha=16).adapter == (8, 16)
