"""The kernel benchmarks: they run, they refuse to report where a result is wrong, they compare and say what they cannot."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import dejavu
from dejavu import _core

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
FEW = ["dot/int8/64/cold", "mlp/int4/64/0.5/cold", "gemm/bf16/64", "step/int8/64/sketch4/1t"]


@pytest.fixture(scope="module", autouse=True)
def _path() -> Any:
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path[:] = before


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with this package and its core, wherever these are installed."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(Path(dejavu.__file__).parent, folder / "dejavu", ignore=shutil.ignore_patterns("*.so"))
    shutil.copy2(str(_core.__file__), folder / "dejavu")
    return folder


def suite(name: str) -> ModuleType:
    return importlib.import_module(name)


class InProcess:
    """A side without a process: the build that runs the tests."""

    def __init__(self, name: str, **changed: Any) -> None:
        self.name, self.changed = name, changed
        self.bench = suite("kernel_suite.worker").Bench(vars(suite("kernels").QUICK), threads=1)

    def ask(self, method: str, **arguments: Any) -> Any:
        value = getattr(self.bench, method)(**arguments)
        return self.changed[method](value, **arguments) if method in self.changed else value


class Scripted:
    """A side whose calls take what a list says, in units of its own."""

    def __init__(self, name: str, seconds: list[float]) -> None:
        self.name, self.seconds, self.asked = name, seconds, 0

    def ask(self, method: str, **arguments: Any) -> Any:
        if method == "load":
            return {"rows": 10, "bytes": 1000, "cold": False, "flops": 0, "threads": 1}
        if method == "check":
            return 0.5
        assert method == "time"
        self.asked += 1
        return self.seconds[self.asked % len(self.seconds)] * arguments["calls"]


def test_every_case_runs_and_its_check_is_green() -> None:
    names = list(suite("kernel_suite.cases").cases(suite("kernels").QUICK, 1))
    assert len(names) == len(set(names)) > 50
    checked = suite("kernel_suite.compare").check(InProcess("new"), None, names)
    assert checked.red == {}
    # A check that compares nothing would be 0 everywhere.
    assert all(0 <= error <= 1 for error in checked.errors["new"].values())
    assert sum(error > 0 for error in checked.errors["new"].values()) > 0.9 * len(names)


@pytest.mark.parametrize("name", FEW)
def test_a_tolerance_that_is_not_met_is_red(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tolerances import TOLERANCES

    for tolerance in TOLERANCES:
        monkeypatch.setitem(TOLERANCES, tolerance, 1e-12)
    red = suite("kernel_suite.compare").check(InProcess("new"), None, [name]).red
    assert "times the error that is allowed" in red[name]


@pytest.mark.parametrize("side", ["new", "old"])
def test_a_wrong_kernel_of_either_side_is_red(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    core = suite("kernel_suite.row_cases").core
    right = core.dot

    def wrong(*arguments: Any) -> None:
        right(*arguments)
        arguments[-1][3] += 0.5

    class Wrong(InProcess):
        def ask(self, method: str, **arguments: Any) -> Any:
            with monkeypatch.context() as patch:
                patch.setattr(core, "dot", wrong)
                return super().ask(method, **arguments)

    sides = [Wrong(n) if n == side else InProcess(n) for n in ("new", "old")]
    checked = suite("kernel_suite.compare").check(*sides, FEW[:2])
    assert set(checked.red) == {FEW[0]}
    assert checked.red[FEW[0]].startswith(side)
    assert checked.not_comparable == {}


def test_what_the_old_side_lacks_is_named_and_what_the_new_side_lacks_is_red() -> None:
    error = suite("kernel_suite.sides").CaseError

    def missing(value: Any, case: str) -> Any:
        if case == FEW[0]:
            raise error("TypeError: dot(): incompatible function arguments")
        return value

    check = suite("kernel_suite.compare").check
    checked = check(InProcess("new"), InProcess("old", load=missing), FEW[:2])
    assert checked.not_comparable == {FEW[0]: "old: TypeError: dot(): incompatible function arguments"}
    assert checked.red == {}
    assert set(check(InProcess("new", load=missing), InProcess("old"), FEW[:2]).red) == {FEW[0]}


def measure(new: Any, old: Any) -> Any:
    (row,) = suite("kernel_suite.compare").measure(
        new, old, ["case"], repeats=12, sample=1.0, cpus=[0], cold_bytes=4096
    )
    return row


def test_the_ratio_is_of_pairs_and_flagged_beyond_the_noise() -> None:
    row = measure(Scripted("new", [0.9]), Scripted("old", [1.0]))
    assert row.ratio == pytest.approx((0.9, 0.9, 0.9))
    assert row.beyond_noise
    assert (len(row.new), sum(map(len, row.new)), sum(map(len, row.old))) == (3, 12, 12)
    noisy = measure(Scripted("new", [0.9, 1.2, 1.0]), Scripted("old", [1.0]))
    assert not noisy.beyond_noise
    assert not measure(Scripted("new", [1.005]), Scripted("old", [1.0])).beyond_noise
    alone = measure(Scripted("new", [0.5]), None)
    assert (alone.ratio, alone.beyond_noise, alone.seconds) == (None, False, 0.5)


def test_the_same_core_in_two_processes(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = suite("kernels")
    build = suite("kernel_suite.builds").Build
    builds = [build(name, "0123456789ab", False, package) for name in ("working tree", "same")]
    names = [*FEW[:2], "attention/f16"]
    file = tmp_path / "kernels.json"
    cpus = sorted(suite("dejavu.environment").usable_cpus())[:1]
    assert kernels.compare(builds, names, kernels.QUICK, 3, True, file, cpus) == 0
    out = capsys.readouterr().out
    assert "time / same" in out
    assert "3 cases compared with same (0123456789ab)" in out
    assert "0 not comparable" in out
    found = json.loads(file.read_text())
    assert [row["case"] for row in found["rows"]] == names
    for row in found["rows"]:
        assert row["ratio"]["lower_quartile"] <= row["ratio"]["median"] <= row["ratio"]["upper_quartile"]
        assert row["GB_s"] > 0
    assert found["rows"][0]["bandwidth_share"] > 0
    assert set(found["check_errors"]) == {"new (working tree)", "old (same)"}


def test_no_figures_where_a_process_finds_a_wrong_result(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = suite("kernels")
    shutil.copytree(package, tmp_path / "wrong")
    # A definition of the codecs that the kernels do not follow.
    with (tmp_path / "wrong/dejavu/codecs.py").open("a") as file:
        file.write("\n_right = roundtrip\nroundtrip = lambda c, w: 1.01 * _right(c, w)\n")
    build = suite("kernel_suite.builds").Build
    builds = [build("working tree", "a", False, package), build("wrong", "b", False, tmp_path / "wrong")]
    output = tmp_path / "kernels.json"
    assert kernels.compare(builds, FEW[:2], kernels.QUICK, 3, True, output, [0]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no figures: 2 of 2 checks are red" in shown.err
    assert f"{FEW[0]}  old (wrong): " in shown.err
    assert not output.exists()


def test_names_are_listed_and_chosen_by_pattern() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(BENCHMARKS / "kernels.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    listed = run("--list", "--quick", "--only", "mlp/*/dense/*").stdout.split()
    assert len(listed) == 8
    assert "mlp/int8/64/dense/cold" in listed
    nothing = run("--only", "mlp9")
    assert nothing.returncode == 2
    assert "no case matches ['mlp9']; --list names them" in nothing.stderr
