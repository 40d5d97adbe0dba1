"""Choosing a plan: off, auto, a folder, a plan; `LLM` and the command line with one."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from dejavu import LLM, SamplingParams
from dejavu.cli.app import run
from dejavu.errors import InputError, PlanError
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, KvPolicy, Oracle, Random, Sketch, choice, choose_plan
from tiny_chat import build_tiny_chat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REFERENCE = ("--executor", "reference", "--kv", "f32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_chat(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def weights(tiny: Path) -> Any:
    return open_model(tiny).weights


@pytest.fixture
def plan(tiny: Path) -> AccessPlan:
    model = open_model(tiny)
    return AccessPlan.uniform(
        model.weights.fingerprint,
        model.config.n_layers,
        name="half",
        neurons=Oracle(density=0.5),
        heads=Random(density=0.5),
        kv=KvPolicy("recompute", 4),
    )


def test_off_is_dense_and_auto_is_the_own_one(plan: AccessPlan, weights: Any, tmp_path: Path) -> None:
    def found(codec: Any, wanted: str = "auto") -> str | None:
        chosen = choose_plan(wanted, weights, codec, tmp_path)
        return None if chosen is None else chosen.name

    assert choose_plan("auto", weights, "f32") is None
    assert found("f32") is None
    plan.save(tmp_path / "plan")
    assert (found("f32"), found("int8"), found(None)) == ("half", "half", "half")
    assert found("f32", "off") is None
    dataclasses.replace(plan, evidence={"codec": "bf16"}).save(tmp_path / "plan")
    assert (found("bf16"), found("f32"), found(None)) == ("half", None, "half")
    dataclasses.replace(plan, evidence={"codec": "bf16", "exact": True}).save(tmp_path / "plan")
    assert found("f32") == "half"
    AccessPlan.uniform(plan.model, len(plan.layers), name="bits", neurons=Sketch(bits=4, density=0.5)).save(
        tmp_path / "plan"
    )
    assert (found("f32"), found("int8"), found("int4")) == (None, "bits", "bits")
    AccessPlan.uniform("another", 2).save(tmp_path / "plan")
    assert found("f32") is None


def test_a_model_brings_its_own_plan(plan: AccessPlan, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    plan.save(tmp_path / "half")
    four = AccessPlan.uniform(plan.model, len(plan.layers), name="own", neurons=Sketch(bits=4, density=0.5))
    dataclasses.replace(four, evidence={"codec": "int8"}).save(folder / "plan")

    def chosen(**options: Any) -> tuple[Any, str]:
        with LLM.from_pretrained(str(folder), fallback=False, cache=False, threads=1, **options) as llm:
            return llm.plan and llm.plan.name, llm.executor.packed.codec  # type: ignore[attr-defined]

    assert chosen() == ("own", "int8")
    assert chosen(plan="off") == (None, "bf16")
    assert chosen(codec="bf16") == (None, "bf16")
    assert chosen(plan=folder / "plan") == ("own", "int8")
    assert chosen(plan=tmp_path / "half") == ("half", "bf16")
    AccessPlan.uniform("another", 2).save(folder / "plan")
    assert chosen() == (None, "bf16")


def test_plans_of_a_model_go_by_their_names(
    plan: AccessPlan, tiny: Path, weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    plan.save(folder / "plan")
    dataclasses.replace(plan, name="gentle").save(folder / "gentler/0.5")
    found = choose_plan("gentler/0.5", weights, "f32", folder)
    assert found is not None
    assert found.name == "gentle"
    with pytest.raises(PlanError, match=r"no plan at gentler/0\.9") as caught:
        choose_plan("gentler/0.9", weights, "f32", folder)
    assert "plan, gentler/0.5" in caught.value.fix
    # What is there under that name comes first.
    dataclasses.replace(plan, name="mine").save(tmp_path / "gentler/0.5")
    monkeypatch.chdir(tmp_path)
    found = choose_plan("gentler/0.5", weights, "f32", folder)
    assert found is not None
    assert found.name == "mine"


def test_a_plan_that_another_codec_leaves_out_is_said_to(
    plan: AccessPlan, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    dataclasses.replace(plan, evidence={"codec": "int8"}).save(folder / "plan")
    command = ["generate", "Hi", "-m", str(folder), "--max-tokens", "2", "--codec"]
    assert run([*command, "bf16"]) == 0
    assert "the model's own plan was made for int8" in capsys.readouterr().err
    assert run([*command, "bf16", "--plan", "plan", "--no-fallback"]) == 0
    assert "made for" not in capsys.readouterr().err
    assert run([*command, "bf16", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["plan"] is None
    assert run([*command, "int8", "--no-fallback"]) == 0
    assert "made for" not in capsys.readouterr().err
    AccessPlan.uniform("another", 2).save(folder / "plan")
    assert run([*command, "bf16"]) == 0
    assert "is not for these weights in bf16" in capsys.readouterr().err


def test_bench_takes_one_format(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(tiny), "-o", "csv", "--json"]) != 0
    assert "--output csv are two formats" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_bench_measures_a_model_by_its_own_plan(plan: AccessPlan, tiny: Path, tmp_path: Path) -> None:
    from dejavu.bench.subjects import model_subject

    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    found = model_subject(str(folder))
    assert (found.plans, found.codec) == (("off",), "bf16")
    dataclasses.replace(plan, evidence={"codec": "int8"}).save(folder / "plan")
    found = model_subject(str(folder))
    assert (found.plans, found.codec) == (("off", "auto"), "int8")
    assert model_subject(str(folder), plans=("off",)).codec == "bf16"


def test_bench_by_an_own_plan_that_there_is_not_is_dense(
    plan: AccessPlan,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    few = ("-p", "0", "-n", "3", "-r", "1", "-t", "1", "--json")

    def measured(*args: str) -> list[tuple[str, str]]:
        assert run(["bench", *args, *few]) == 0
        return [(r["codec"], r["plan"]) for r in json.loads(capsys.readouterr().out)["results"]]

    assert measured(str(folder), "--plan", "auto", "--codec", "int8") == [("int8", "off")]
    dataclasses.replace(plan, evidence={"codec": "int8"}).save(folder / "plan")
    found = measured(str(folder), "--codec", "bf16,int8")
    assert found == [("bf16", "off"), ("int8", "off"), ("int8", "auto")]
    monkeypatch.setattr("dejavu.bench.subjects.shape", lambda name: open_model(tiny).config)
    monkeypatch.setattr("dejavu.bench.suite.shape", lambda name: open_model(tiny).config)
    assert run(["bench", "--shape", "tiny", "--plan", "auto,off", *few[:-1]]) == 0
    told = capsys.readouterr()
    assert "tiny has no plan of its own for weights in int8" in told.err
    assert "auto" not in told.out


def test_a_folder_or_a_plan(plan: AccessPlan, weights: Any, tmp_path: Path) -> None:
    plan.save(tmp_path / "mine")
    for wanted in (tmp_path / "mine", str(tmp_path / "mine"), plan):
        found = choose_plan(wanted, weights, "f32")
        assert found is not None
        assert found.name == "half"
    with pytest.raises(PlanError, match="is for model another"):
        choose_plan(AccessPlan.uniform("another", 2), weights, "f32")
    sketch = AccessPlan.uniform(plan.model, 2, neurons=Sketch(bits=3, density=0.5))
    with pytest.raises(PlanError, match="bf16 does not have") as caught:
        choose_plan(sketch, weights, "bf16")
    assert "--codec int8," in str(caught.value)
    with pytest.raises(PlanError, match="int4 does not have"):
        choose_plan(sketch, weights, "int4")
    four = AccessPlan.uniform(plan.model, 2, neurons=Sketch(bits=4, density=0.5))
    assert choose_plan(four, weights, "int4") is four
    with pytest.raises(PlanError, match="--codec int8 or int4"):
        choose_plan(four, weights, "f32")
    with pytest.raises(PlanError, match="cannot read"):
        choose_plan(tmp_path / "none", weights, "f32")


def test_generating_by_a_plan(plan: AccessPlan, tiny: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)

    def text(**options: Any) -> tuple[str, Any]:
        with LLM.from_pretrained(str(tiny), executor="reference", kv_dtype="f32", **options) as llm:
            return llm.generate("the cat", params).text, (llm.plan and llm.plan.name)

    base, none = text()
    assert none is None
    sparse, name = text(plan=plan)
    assert name == "half"
    assert sparse != base
    assert text(plan="off") == (base, None)


@pytest.fixture
def dejavu(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def call(*args: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = run([*args, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def test_plans_on_the_command_line(
    plan: AccessPlan, tiny: Path, tmp_path: Path, dejavu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan.save(tmp_path / "mine")
    mine, model = str(tmp_path / "mine"), str(tiny)
    rest = ("--raw", "-n", "9", "--ignore-eos", *REFERENCE)
    texts = {}
    for wanted in ("off", "auto", mine):
        code, result = dejavu("generate", "the cat", "-m", model, "--plan", wanted, *rest)
        assert code == 0
        texts[wanted] = result["completions"][0]["text"]
    assert texts["off"] == texts["auto"] != texts[mine]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n")))
    code, result = dejavu("chat", model, "--plan", mine, "-n", "3", "--temperature", "0", *REFERENCE)
    assert code == 0
    code, result = dejavu("generate", "the cat", "-m", model, "--plan", str(tmp_path), *REFERENCE)
    assert code == PlanError.exit_code
    assert result["error"]["type"] == "PlanError"


def test_perplexity_by_a_plan(plan: AccessPlan, tiny: Path, tmp_path: Path, dejavu: Any) -> None:
    plan.save(tmp_path / "mine")
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the cat sat on the hat")

    def score(*options: str) -> dict[str, Any]:
        code, result = dejavu("perplexity", str(tiny), "--text", str(text), *REFERENCE, *options)
        assert code == 0
        return result

    base, masked = score(), score("--plan", str(tmp_path / "mine"))
    stepwise = score("--plan", str(tmp_path / "mine"), "--path", "decode")
    assert (base["path"], masked["path"], stepwise["path"]) == ("prefill", "masked", "decode")
    assert abs(masked["nll"] - stepwise["nll"]) < 1e-4
    assert abs(masked["nll"] - base["nll"]) > 1e-4
    code, result = dejavu(
        *("perplexity", str(tiny), "--text", str(text), *REFERENCE),
        *("--plan", str(tmp_path / "mine"), "--path", "prefill"),
    )
    assert code == InputError.exit_code
    assert "the plan would not run" in result["error"]["message"]
    assert "plan" not in base
    assert masked["plan"] == "half"
    assert masked["plan_density"] == pytest.approx(sum(masked["plan_stats"]["neurons"]) / 2)
    assert set(masked["plan_stats"]["heads"]) == {0.5}


def test_the_native_engine_by_a_plan(plan: AccessPlan, tiny: Path) -> None:
    with LLM.from_pretrained(
        str(tiny), codec="int8", plan=plan, fallback=False, cache=False, threads=1
    ) as llm:
        llm.generate("the cat", SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
        assert llm.executor.last_stats["neurons"] == pytest.approx([0.5] * len(plan.layers), abs=0.02)
    sketch = AccessPlan.uniform(plan.model, len(plan.layers), neurons=Sketch(bits=3, density=0.5))
    with LLM.from_pretrained(
        str(tiny), codec="int8", plan=sketch, fallback=False, cache=False, threads=1
    ) as llm:
        llm.generate("the cat", SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
        assert llm.executor.last_stats["neurons"] == pytest.approx([0.5] * len(plan.layers), abs=0.02)
    with pytest.raises(PlanError, match="bf16 does not have"):
        LLM.from_pretrained(str(tiny), codec="bf16", plan=sketch)


def test_bench_loads_by_a_plan(
    plan: AccessPlan, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dejavu.bench.cases import Setting, make_cases, make_tests
    from dejavu.bench.runner import run_cases
    from dejavu.bench.subjects import model_subject, shape_subject

    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    plan.save(tmp_path / "mine")
    subject = model_subject(str(tiny))
    cases = make_cases(("int8",), ("f16",), (1,), make_tests((), (3,), (1,)), ("off", str(tmp_path / "mine")))
    base, planned = run_cases(subject, cases, repeats=1)
    assert base.step_bytes
    assert planned.step_bytes is not None
    assert planned.step_bytes < base.step_bytes
    assert base.density == base.heads_density == 1.0
    assert planned.density is not None
    assert planned.density < 1
    assert planned.part_ms is not None
    assert base.recall is None
    assert planned.recall is not None
    assert 0 < planned.recall <= 1
    assert (base.case.setting.plan, planned.case.setting.plan) == ("off", str(tmp_path / "mine"))
    with pytest.raises(PlanError, match="cannot read"):
        subject.load(Setting("int8", "f16", 1, str(tmp_path / "none")))
    monkeypatch.setattr("dejavu.bench.subjects.shape", lambda name: open_model(tiny).config)
    with pytest.raises(PlanError, match="this one is synthetic"):
        shape_subject("tiny").load(Setting("int8", "f16", 1, str(tmp_path / "mine")))


def test_generate_says_what_the_plan_did(plan: AccessPlan, tiny: Path, tmp_path: Path, dejavu: Any) -> None:
    plan.save(tmp_path / "mine")
    command = (
        "generate",
        "the cat",
        "-m",
        str(tiny),
        "--codec",
        "int8",
        "-n",
        "9",
        "--ignore-eos",
        "--no-fallback",
    )
    code, result = dejavu(*command, "--plan", str(tmp_path / "mine"), "--check")
    assert code == 0
    found = result["plan"]
    assert found["name"] == "half"
    assert found["density"] == pytest.approx(0.5, abs=0.02)
    assert 0 < sum(found["touched_bytes"].values()) < sum(found["dense_bytes"].values())
    assert 0 < found["predictor_share"] < 1
    assert len(found["layers"]["recall"]) == len(plan.layers)
    assert 0 <= found["recall"] <= 1
    code, result = dejavu(*command, "--plan", str(tmp_path / "mine"))
    assert "recall" not in result["plan"]
    code, result = dejavu(*command, "--plan", "off")
    assert result["plan"] is None
    code, result = dejavu(*command, "--plan", "off", "--check")
    assert code == InputError.exit_code
    assert "no plan to check" in result["error"]["message"]
    assert run([*command, "--plan", str(tmp_path / "mine"), "--check", "--quiet"]) == InputError.exit_code


def test_a_folder_that_cannot_be_one(weights: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in ("~nosuch/plan", "a\0b"):
        with pytest.raises(InputError, match=r"no home folder ~nosuch|holds a NUL"):
            choose_plan(wanted, weights, None, tiny)

    def forbidden(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.is_file", forbidden)
    for ask in (lambda: choice.own_plans(tiny), lambda: choose_plan("auto", weights, None, tiny)):
        with pytest.raises(PlanError, match=r"cannot read .*Permission denied"):
            ask()
