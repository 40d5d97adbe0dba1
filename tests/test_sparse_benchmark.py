"""benchmarks/sparse.py: no figures unless the timed plan computes what it should and chooses what was asked for."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dejavu.bench.shapes import shape
from dejavu.plan import Static

if TYPE_CHECKING:
    from types import ModuleType

SMALL = dataclasses.replace(
    shape("opt-1.3b"), vocab_size=96, d_model=96, n_layers=3, n_heads=6, n_kv_heads=6, head_dim=16, d_ff=400
)


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    module = importlib.import_module("sparse")
    monkeypatch.setattr(module, "shape", lambda name: SMALL)
    monkeypatch.setattr(module, "read_bandwidth", lambda: None)
    return module


def rows(
    sparse: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> list[dict[str, Any]]:
    short = ("--context", "9", "--repeats", "3", "--threads", "2")
    monkeypatch.setattr(sys, "argv", ["sparse.py", *arguments, *short])
    sparse.main()
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    return found


@pytest.mark.parametrize("codec", ["f32", "bf16", "int8", "int4"])
def test_blocks(
    codec: str, sparse: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rows(sparse, monkeypatch, capsys, "kernels", "--codec", codec, "--densities", ".1,.5")
    assert [(row["block"], row["density"]) for row in found] == [
        ("mlp", 0.1),
        ("mlp", 0.5),
        ("attention", 0.1),
        ("attention", 0.5),
    ]
    assert [row["measured"] for row in found] == [
        {"neurons": 0.1},
        {"neurons": 0.5},
        {"heads": pytest.approx(1 / 6, abs=1e-4)},
        {"heads": 0.5},
    ]
    for few, half in (found[:2], found[2:]):
        assert few["touched_bytes"] < half["touched_bytes"] < half["dense_bytes"] == few["dense_bytes"]


@pytest.mark.parametrize("codec", ["f32", "bf16", "int8", "int4"])
def test_a_whole_model(
    codec: str, sparse: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = rows(sparse, monkeypatch, capsys, "model", "--codec", codec, "--neurons", ".2", "--rank", "8")
    assert row["measured"] == {"neurons": pytest.approx(0.2, abs=0.02), "heads": 0.5}
    assert 0 < row["touched_bytes"] < row["dense_bytes"]


def test_gathering(
    sparse: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    found = rows(sparse, monkeypatch, capsys, "gather", "--densities", ".25")
    assert [row["codec"] for row in found] == ["f32", "bf16"]
    assert [row["measured"] for row in found] == [{"neurons": 0.25}] * 2
    assert {*found[0]["ms"]} == {"dejavu", "torch", "numpy"}


def test_densities_that_were_not_asked_for_give_no_figures(
    sparse: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = sparse.static_plan
    monkeypatch.setattr(sparse, "static_plan", lambda executor, density, block: plan(executor, 0.5, block))
    with pytest.raises(SystemExit, match=r"0\.500 of the neurons were chosen instead of 0\.4; no figures"):
        rows(sparse, monkeypatch, capsys, "kernels", "--densities", ".4")
    assert capsys.readouterr().out == ""


def test_plans_that_compute_something_else_give_no_figures(
    sparse: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = sparse.whole

    def nearly(selector: Any, units: int) -> Any:
        found = whole(selector, units)
        return dataclasses.replace(found, indices=found.indices[1:]) if isinstance(found, Static) else found

    monkeypatch.setattr(sparse, "whole", nearly)
    with pytest.raises(SystemExit, match="differs from dense"):
        rows(sparse, monkeypatch, capsys, "kernels", "--densities", ".5")
