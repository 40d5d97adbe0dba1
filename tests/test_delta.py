"""Deltas: what is kept of a difference, that any reader sees base and delta together, and files that do not fit."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dejavu import LLM, SamplingParams, codecs
from dejavu.cli.app import run
from dejavu.conversion import convert_to_delta, convert_to_share
from dejavu.errors import InputError, ModelFormatError, PlanError
from dejavu.models.delta import ARRAYS_NAME, DELTA_NAME, GROUP, decode, encode
from dejavu.models.folder_writer import write_folder
from dejavu.models.loading import open_model
from dejavu.nested import cut
from dejavu.plan import AccessPlan, Sketch
from dejavu.tokenizer import Tokenizer
from dejavu.units import human_bytes
from tiny_chat import build_tiny_chat

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_chat(tmp_path_factory.mktemp("delta") / "base")


def changed(base: Path, target: Path, touch: str = "layers.") -> Path:
    """The base with other matrices."""
    opened, rng = open_model(base), np.random.default_rng(5)

    def read(name: str) -> np.ndarray:
        values = opened.weights.read(name)
        if name.startswith(touch) and values.ndim == 2:
            values = values + np.float32(0.01) * rng.standard_normal(values.shape, np.float32)
        return values

    write_folder(target, opened.config, read, add_files=Tokenizer.from_model(opened).save)
    opened.close()
    return target


@pytest.fixture(scope="module")
def adapted(base: Path) -> Path:
    return changed(base, base.parent / "adapted")


@pytest.fixture
def delta(base: Path, adapted: Path, tmp_path: Path) -> Path:
    convert_to_delta(adapted, tmp_path / "delta", str(base), base)
    return tmp_path / "delta"


@pytest.mark.parametrize("columns", [1, 4, 5, 8, 63, 64, 65, 576])
def test_trits_and_a_scale(columns: int) -> None:
    difference = np.random.default_rng(0).standard_normal((5, columns)).astype(np.float32)
    codes, scales = encode(difference)
    assert codes.shape == (5, -(-columns // 5))
    found = decode(codes, scales, 0, columns)
    for start in range(0, columns, GROUP):
        group, kept = difference[:, start : start + GROUP], found[:, start : start + GROUP]
        for row, values in zip(group, kept, strict=True):
            sizes = np.sort(np.abs(row))[::-1].astype(np.float64)
            left = [
                (row.astype(np.float64) ** 2).sum() - sizes[:k].sum() ** 2 / k for k in range(1, len(row) + 1)
            ]
            assert ((row - values) ** 2).sum() <= min(left) + 1e-3 * (row**2).sum()  # the scale is float16
            assert len(set(np.abs(values[values != 0]))) <= 1
            assert (np.sign(values)[values != 0] == np.sign(row)[values != 0]).all()
    for first, last in ((0, 1), (columns - 1, columns), (columns // 3, columns)):
        np.testing.assert_array_equal(decode(codes, scales, first, last), found[:, first:last])
    zeros = np.zeros((2, columns), np.float32)
    np.testing.assert_array_equal(decode(*encode(zeros), 0, columns), zeros)
    with pytest.raises(ModelFormatError, match="a byte of a delta is 243"):
        decode(np.full_like(codes, 243), scales, 0, columns)


def test_normal_differences_lose_a_fifth_of_their_energy() -> None:
    difference = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    left = difference - decode(*encode(difference), 0, 1024)
    assert 0.17 < (left**2).mean() < 0.19  # Max 1960: 0.190 with the best levels for all


def test_readers_see_both(base: Path, adapted: Path, delta: Path) -> None:
    opened, original, exact = (open_model(path) for path in (delta, base, adapted))
    assert opened.config == original.config
    assert opened.weights.fingerprint not in (original.weights.fingerprint, exact.weights.fingerprint)
    for name in original.weights.names():
        found, before, after = (m.weights.read(name) for m in (opened, original, exact))
        if name.startswith("layers.") and found.ndim == 2:
            expected = before + decode(*encode(after - before), 0, before.shape[1])
            np.testing.assert_allclose(found, expected, atol=1e-6)
            assert np.abs(found - after).mean() < 0.5 * np.abs(before - after).mean()
            np.testing.assert_array_equal(opened.weights.read(name, 3, 7), found[3:7])
            np.testing.assert_array_equal(opened.weights.read_columns(name, 0, found.shape[1]), found)
        else:
            np.testing.assert_array_equal(found, before)
    for model in (opened, original, exact):
        model.close()


def test_wide_matrices_by_columns(tmp_path: Path) -> None:
    from dejavu.models.delta import DeltaWeights, write_delta

    class Arrays:
        fingerprint = "f"

        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def names(self) -> list[str]:
            return ["layers.0.down.weight"]

        def shape(self, name: str) -> tuple[int, ...]:
            return self.values.shape

        def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
            return self.values[start:stop]

        def read_columns(self, name: str, start: int, stop: int) -> np.ndarray:
            return self.values[:, start:stop]

        def release(self) -> None:
            pass

    rng = np.random.default_rng(0)
    base, other = (Arrays(rng.standard_normal((6, 700)).astype(np.float32)) for _ in range(2))
    write_delta(tmp_path / "delta", base, other, name="x")  # type: ignore[arg-type]
    found = DeltaWeights(base, tmp_path / "delta", {"fingerprint": "f", "base": "x"})  # type: ignore[arg-type]
    whole = found.read("layers.0.down.weight")
    for start, stop in ((0, 256), (256, 512), (512, 700), (0, 700)):
        np.testing.assert_array_equal(
            found.read_columns("layers.0.down.weight", start, stop), whole[:, start:stop]
        )


def test_running_a_delta(base: Path, delta: Path, adapted: Path) -> None:
    tokens, logits = np.arange(3, 12, dtype=np.int32), []
    for path in (delta, base, adapted):
        with LLM.from_pretrained(str(path), codec="f32", cache=False, threads=1) as llm:
            assert len(llm.generate("the cat", SamplingParams(max_tokens=8, ignore_eos=True)).text) > 0
            assert llm.tokenizer.chat_template
            logits.append(llm.executor.prefill(tokens, llm.executor.new_cache(), all_logits=True))
    assert 0 < np.abs(logits[0] - logits[2]).mean() < 0.6 * np.abs(logits[1] - logits[2]).mean()


def test_on_the_command_line(
    base: Path, adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", str(adapted), "-o", str(tmp_path / "delta"), "--json"]
    assert run([*command, "--format", "delta", "--base", str(base)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["codec"]) == ("delta", "ternary")
    assert found["bytes"] < 0.3 * (adapted / "model.safetensors").stat().st_size
    for more in (
        ["--format", "delta"],
        ["--base", str(base)],
        ["--format", "delta", "--base", str(base), "--force"],
    ):
        assert run([*command[:2], "-o", str(tmp_path / "x"), *more]) == InputError.exit_code
    assert run([*command, "--format", "delta", "--base", str(base)]) == InputError.exit_code
    capsys.readouterr()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_plans_come_along(
    base: Path, adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_model(adapted)
    own = AccessPlan.uniform(opened.weights.fingerprint, 2, neurons=Sketch(bits=4, density=0.25), name="own")
    opened.close()
    shutil.copytree(adapted, tmp_path / "model")
    own.save(tmp_path / "model" / "plan")
    dataclasses.replace(own, name="more").save(tmp_path / "model" / "gentler" / "0.5")
    command = ["convert", str(tmp_path / "model"), "-o", str(tmp_path / "delta"), "--json"]
    assert run([*command, "--format", "delta", "--base", str(base)]) == 0
    assert run(["convert", str(tmp_path / "delta"), "-o", str(tmp_path / "whole"), "--json"]) == 0
    for converted in ("delta", "whole"):
        names = [AccessPlan.load(tmp_path / converted / place).name for place in ("plan", "gentler/0.5")]
        assert names == ["own", "more"]
        found = AccessPlan.load(tmp_path / converted / "plan")
        assert found.evidence["measured_on"] == own.model
    for more in (["--format", "delta", "--base", str(base)], []):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AccessPlan, "save", interrupted)
            assert run([*command[:3], str(tmp_path / "again"), *more]) == 130
        assert not list(tmp_path.glob("*again*"))  # no model without its plans
    (tmp_path / "model" / "plan" / "predictors.safetensors").unlink()
    command[3] = str(tmp_path / "again")
    assert run([*command, "--format", "delta", "--base", str(base)]) == PlanError.exit_code
    assert not (tmp_path / "again").exists()
    capsys.readouterr()
    with LLM.from_pretrained(str(tmp_path / "delta"), codec="int8", cache=False, fallback=False) as llm:
        assert llm.plan is not None
        assert llm.plan.name == "own"


def test_a_delta_of_a_model_that_lives_on_leading_bits_keeps_them(
    base: Path, adapted: Path, tmp_path: Path
) -> None:
    """Whose plan reads nothing else: more of these bits survive than where the weights themselves are aimed at."""
    names = [f"layers.{i}.{part}.weight" for i in range(2) for part in ("gate", "up")]

    def share_kept(source: Path, name: str) -> float:
        convert_to_delta(source, tmp_path / name, str(base), base)
        found, wanted = open_model(tmp_path / name).weights, open_model(source).weights
        alike = [
            cut(codecs.encode("int8", found.read(n)), 4)[0]
            == cut(codecs.encode("int8", wanted.read(n)), 4)[0]
            for n in names
        ]
        return float(np.mean([np.mean(a) for a in alike]))

    source = tmp_path / "source"
    shutil.copytree(adapted, source)
    plain = share_kept(source, "plain")
    opened = open_model(source)
    sketch = Sketch(bits=4, threshold=0.1, values="leading")
    plan = AccessPlan.uniform(opened.weights.fingerprint, opened.config.n_layers, neurons=sketch)
    dataclasses.replace(plan, evidence={"codec": "int8"}).save(source / "plan")
    assert share_kept(source, "leading") > plain
    dataclasses.replace(plan, evidence={"codec": "int4"}).save(source / "plan")
    assert share_kept(source, "other") == plain


def test_what_does_not_fit_is_refused(base: Path, adapted: Path, delta: Path, tmp_path: Path) -> None:
    other = changed(base, tmp_path / "embedding", "embed")
    with pytest.raises(InputError, match=r"embed.weight differs"):
        convert_to_delta(other, tmp_path / "x", str(base), base)
    assert not (tmp_path / "x").exists()
    record = json.loads((delta / DELTA_NAME).read_text())
    for change, message in (
        ({"fingerprint": "0" * 64}, "is for other weights"),
        ({"schema": 1}, "not of schema 2"),
        ({"more": 1}, "not of schema 2"),
        ({"base": 3}, "are not texts"),
    ):
        (delta / DELTA_NAME).write_text(json.dumps(record | change))
        with pytest.raises(ModelFormatError, match=message):
            open_model(delta)
    (delta / DELTA_NAME).write_text(json.dumps(record))
    arrays = (delta / ARRAYS_NAME).read_bytes()
    for damaged in (
        arrays[:-9],
        arrays[:40],
        arrays.replace(b"layers.1.up.weight.trits", b"layers.1.up.weight.trips"),
    ):
        (delta / ARRAYS_NAME).write_bytes(damaged)
        with pytest.raises(ModelFormatError):
            open_model(delta)
    shutil.rmtree(delta)


def test_info_says_what_it_is_of_and_names_its_plans(
    base: Path, delta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_model(delta)
    plan = AccessPlan.uniform(opened.weights.fingerprint, 2, neurons=Sketch(bits=4, density=0.25), name="own")
    opened.close()
    evidence = {"codec": "int8", "neurons": {"density": 0.251}}
    dataclasses.replace(plan, evidence=evidence).save(delta / "plan")
    plan.save(delta / "gentler" / "0.5")
    assert run(["info", str(delta), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    size = (delta / ARRAYS_NAME).stat().st_size
    assert told["delta"] == {"base": str(base), "bytes": size, "share": None}
    assert told["plans"] == [
        {"place": "plan", "name": "own", "density": 0.251, "codec": "int8"},
        {"place": "gentler/0.5", "name": "own", "density": None, "codec": None},
    ]
    assert run(["info", str(delta)]) == 0
    shown = capsys.readouterr().out
    assert f"delta of {base}, {human_bytes(size)}" in shown
    assert "--plan plan (own, 25% of the neurons, int8); --plan gentler/0.5 (own)" in shown


def test_a_share_goes_part_of_the_way(base: Path, delta: Path, tmp_path: Path) -> None:
    """Of one delta, and of a share of it; its fingerprint is its own."""
    convert_to_share(delta, tmp_path / "half", 0.5, str(delta))
    convert_to_share(tmp_path / "half", tmp_path / "quarter", 0.5, str(tmp_path / "half"))
    convert_to_share(delta, tmp_path / "all", 1.0, str(delta))
    models = [
        open_model(path) for path in (base, delta, tmp_path / "half", tmp_path / "quarter", tmp_path / "all")
    ]
    original, full, half, quarter, everything = (model.weights for model in models)
    assert len({w.fingerprint for w in (original, full, half, quarter)}) == 4
    for name in original.names():
        before, after = original.read(name), full.read(name)
        for weights, share in ((half, 0.5), (quarter, 0.25), (everything, 1.0)):
            found = weights.read(name)
            np.testing.assert_allclose(found, before + share * (after - before), atol=1e-6)
            if found.ndim == 2:
                np.testing.assert_array_equal(weights.read_columns(name, 0, found.shape[1]), found)
    for model in models:
        model.close()
    with LLM.from_pretrained(str(tmp_path / "half"), codec="f32", cache=False, threads=1) as llm:
        assert len(llm.generate("the cat", SamplingParams(max_tokens=4, ignore_eos=True)).text) > 0


def test_shares_that_are_refused(base: Path, delta: Path, tmp_path: Path) -> None:
    for share in (0.0, -0.5, 1.01, math.nan, math.inf):
        with pytest.raises(InputError, match="a share of"):
            convert_to_share(delta, tmp_path / "x", share, str(delta))
    with pytest.raises(InputError, match="is not a delta"):
        convert_to_share(base, tmp_path / "x", 0.5, str(base))
    assert not (tmp_path / "x").exists()
    convert_to_share(delta, tmp_path / "half", 0.5, str(delta))
    with pytest.raises(InputError, match="exists"):
        convert_to_share(delta, tmp_path / "half", 0.5, str(delta))
    record = json.loads((tmp_path / "half" / DELTA_NAME).read_text())
    opened = open_model(base)
    of_base = {"base": str(base), "fingerprint": opened.weights.fingerprint}
    opened.close()
    for change, message in (
        ({"fingerprint": "0" * 64}, "is for other weights"),
        (of_base, "is not a delta"),
        *(
            ({"share": share}, "the share is")
            for share in (0, 2, -0.1, "0.5", True, None, math.nan, [0.5], 10**400)
        ),
    ):
        (tmp_path / "half" / DELTA_NAME).write_text(json.dumps(record | change))
        with pytest.raises(ModelFormatError, match=message):
            open_model(tmp_path / "half")


def test_shares_on_the_command_line(
    base: Path, delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    assert run(["convert", str(delta), "--share", "0.5", "-o", str(half), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] < 1000
    assert run(["info", str(half), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["delta"] == {"base": str(delta), "bytes": 0, "share": 0.5}
    assert run(["info", str(half)]) == 0
    assert f"0.5 of the delta {delta}; with both bases" in capsys.readouterr().out
    assert run(["convert", str(half), "-o", str(tmp_path / "whole"), "--json"]) == 0
    whole, opened = open_model(tmp_path / "whole"), open_model(half)
    for name in opened.weights.names():
        np.testing.assert_array_equal(whole.weights.read(name), opened.weights.read(name))
    for model in (whole, opened):
        model.close()
    for more in (["--force"], ["--codec", "f16"], ["--format", "delta"], ["--base", str(base)]):
        command = ["convert", str(delta), "--share", "0.5", "-o", str(tmp_path / "x"), *more]
        assert run(command) == InputError.exit_code
    assert run(["convert", str(base), "--share", "0.5", "-o", str(tmp_path / "x")]) == InputError.exit_code
    capsys.readouterr()
