"""Peers of the benchmark: the process that they run in, its failures, their files, the table. Times are not looked at."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.bench.cases import Case, Setting, make_cases
from dejavu.bench.cases import Test as BenchTest
from dejavu.bench.peers.contest import PeerCase, make_peer_cases
from dejavu.bench.peers.engines import ENGINES, Engine, find_engine
from dejavu.bench.peers.files import PeerFiles
from dejavu.bench.peers.process import PeerProcess
from dejavu.bench.peers.synthetic_gguf import write_synthetic_gguf
from dejavu.bench.peers.table import peer_records, peer_table
from dejavu.bench.results import Result, Run
from dejavu.bench.shapes import shape
from dejavu.cli.app import run
from dejavu.conversion import convert_to_delta
from dejavu.errors import CacheError, InputError, PeerError, PeerMissingError, UnsupportedModelError
from dejavu.models.loading import open_model
from dejavu.models.safetensors import SafeTensors
from test_convert import written
from test_delta import changed
from tiny_chat import build_tiny_chat
from tiny_gated import configured

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BACKEND = """
import os, signal, sys, time
VERSION = "fake 1.2"
class Backend:
    loads = 0
    def load(self, path, threads, **more):
        self.loaded = [path, threads, more]
        print("chatter on the standard output")
    def state(self):
        return self.loaded
    def echo(self, value):
        return value
    def fail(self):
        raise ValueError("seven")
    def die(self):
        print("GGML_ASSERT(false)", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    def leave(self):
        os._exit(3)
    def sleep(self):
        time.sleep(60)
    def time(self, kind, rows, depth):
        if kind == "pp":
            return self.prompt(rows)
        return {"first": 0.25, "steps": [0.5] * (len(rows[0]) - depth)}
    def prompt(self, rows):
        return {"first": 0.25, "steps": []}
"""
WORSE = "    def prompt(self, rows):\n        "
TESTS = (BenchTest("pp", 8), BenchTest("tg", 4), BenchTest("tg", 2, 2, 3))
TEXT = np.arange(50, dtype=np.int32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_chat(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def backend(tmp_path: Path) -> Callable[[str], Path]:
    def write(more: str = "") -> Path:
        path = tmp_path / "backend.py"
        path.write_text(BACKEND + more, encoding="utf-8")
        return path

    return write


def engine(backend: Path, **more: Any) -> Engine:
    base = Engine("fake", backend, "pip install fake", "folder", {"int8": "I8"}, ("f16",), {"": {}})
    return replace(base, **more)


def cases_of(
    peer: Engine, tiny: Path, tmp_path: Path, tests: tuple[BenchTest, ...] = TESTS, **more: Any
) -> list[PeerCase]:
    cases = make_cases(more.pop("codecs", ("int8",)), ("f16",), (2,), tests, ("off", "plan"))
    files = PeerFiles(tmp_path, tiny)
    return make_peer_cases([peer], cases, python=more.pop("python", sys.executable), files=files)


def run_all(cases: list[PeerCase], rounds: int = 2) -> None:
    try:
        for case in cases:
            case.warm_up(TEXT)
        for _ in range(rounds):
            for case in cases:
                case.run(TEXT)
    finally:
        for case in cases:
            case.contestant.close()


# --- the process


def test_process_answers(backend: Callable[[str], Path]) -> None:
    with PeerProcess(sys.executable, backend("")) as peer:
        assert peer.version == "fake 1.2"
        peer.call("load", path="x", threads=3, kv="f16")
        assert peer.call("state") == ["x", 3, {"kv": "f16"}]
        assert peer.call("echo", value="naïve 😀\n") == "naïve 😀\n"
        assert peer.call("peak_rss") > 0
        with pytest.raises(PeerError, match="ValueError: seven"):
            peer.call("fail")
        with pytest.raises(PeerError, match="AttributeError"):
            peer.call("nothing")
        assert peer.call("echo", value=[1]) == [1]  # it is still there
    assert not peer.alive
    with pytest.raises(PeerError, match="was closed"):
        peer.call("echo", value=1)


def test_process_that_ends_says_how(backend: Callable[[str], Path]) -> None:
    with PeerProcess(sys.executable, backend("")) as peer:
        with pytest.raises(PeerError, match=r"ended by SIGKILL: GGML_ASSERT\(false\)"):
            peer.call("die")
        with pytest.raises(PeerError, match="SIGKILL"):
            peer.call("echo", value=1)
    with (
        PeerProcess(sys.executable, backend("")) as peer,
        pytest.raises(PeerError, match="ended with status 3"),
    ):
        peer.call("leave")


def test_process_that_hangs_is_ended(backend: Callable[[str], Path]) -> None:
    with PeerProcess(sys.executable, backend(""), timeout=3) as peer:
        with pytest.raises(PeerError, match="did not answer within 3 s"):
            peer.call("sleep")
        assert not peer.alive


def test_process_that_cannot_start(backend: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"cannot run .*nowhere"):
        PeerProcess(str(tmp_path / "nowhere"), backend(""))
    with pytest.raises(PeerMissingError, match="no_such_engine is not installed"):
        PeerProcess(sys.executable, backend("import no_such_engine"))
    with pytest.raises(PeerError, match="status 1: ZeroDivisionError"):
        PeerProcess(sys.executable, backend("1 / 0"))


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("echo hello", "not a JSON object"),
        ("echo [1]", "not a JSON object"),
        ("echo '{}'", "did not greet"),
        ("exit 4", "ended with status 4"),
        ('echo \'{"ready": "1"}\'; read line; echo \'{"what": 1}\'', "answered {'what': 1}"),
        ('echo \'{"ready": "1"}\'; read line; echo \'{"value": \'', "not a JSON object"),
        ('echo \'{"ready": "1"}\'; exit 0', "status 0"),
    ],
)
def test_protocol_errors(says: str, reason: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{says}\n", encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(PeerError) as caught, PeerProcess(str(python), tmp_path / "none.py") as peer:
        peer.call("load")
    assert reason in str(caught.value)


# --- cases in the rounds


def test_cases_are_measured(backend: Callable[[str], Path], tiny: Path, tmp_path: Path) -> None:
    cases = cases_of(engine(backend("")), tiny, tmp_path)
    assert [case.test for case in cases] == [*TESTS]  # once, not for every plan
    assert len({id(case.contestant) for case in cases}) == 1
    run_all(cases)
    assert [case.status for case in cases] == ["measured"] * 3
    pp, tg, deep = (case.result for case in cases)
    assert pp is not None
    assert tg is not None
    assert deep is not None
    assert (pp.seconds, pp.ttft) == ((0.25, 0.25), 0.25)
    assert (tg.seconds, tg.ttft) == ((2.0, 2.0), 0.5)  # nothing comes before the first step
    assert (deep.seconds, deep.ttft, deep.median) == ((1.0, 1.0), 0.25, 4.0)
    ours = [
        Result(Case(Setting("int8", "f16", 2, plan), TESTS[1]), (Run(s, s), Run(s, s)))
        for plan, s in (("off", 1.0), ("plan", 0.5))
    ]
    assert cases[0].contestant.peak_rss > 0
    cases[0].contestant.peak_rss = 12 << 20
    rows = peer_table(cases, ours).rows
    assert peer_table(cases, ours).title.endswith("(fake 1.2)")
    assert rows[1] == (
        "fake", "I8", "int8", "2", "tg4", "2.00 ± 0.00", "500.000", "500.000", "12.0 MiB", "2.00x, 4.00x by plan"
    )  # fmt: skip
    assert rows[0][-1] == ""
    records = json.loads(json.dumps(peer_records(cases, ours)))
    assert records[1]["ratios"] == {"off": 2.0, "plan": 4.0}
    assert records[1]["seconds"] == [2.0, 2.0]
    assert records[1]["itl_p99_s"] == 0.5
    assert (records[1]["status"], records[1]["version"], records[1]["fix"]) == ("measured", "fake 1.2", None)
    assert records[1]["peak_rss_bytes"] == 12 << 20


def test_first_token_may_be_left_out(backend: Callable[[str], Path], tiny: Path, tmp_path: Path) -> None:
    body = "    def time(self, kind, rows, depth):\n        return {'first': None, 'steps': [0.5, 0.5]}\n"
    cases = cases_of(engine(backend(body)), tiny, tmp_path, TESTS[2:])
    run_all(cases)
    result = cases[0].result
    assert result is not None
    assert (result.ttft, result.median) == (None, 4.0)
    assert peer_records(cases, [])[0]["ttft_s"] is None


def test_a_crash_ends_one_case_alone(backend: Callable[[str], Path], tiny: Path, tmp_path: Path) -> None:
    cases = cases_of(engine(backend(f"{WORSE}self.die()\n")), tiny, tmp_path)
    run_all(cases)
    assert [case.status for case in cases] == ["failed", "measured", "measured"]
    assert "SIGKILL: GGML_ASSERT" in cases[0].reason
    table = peer_table(cases, [])
    assert table.rows[0][-1].startswith("failed: the process ended by SIGKILL")
    assert all(len(row) == len(table.headers) for row in table.rows)
    record = peer_records(cases, [])[0]
    assert record["reason"] == cases[0].reason
    assert "seconds" not in record


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise MemoryError('too large')", "MemoryError: too large"),
        ("return {'first': 1.0, 'steps': [1.0]}", "timed 1 steps"),
        ("return {'first': 'soon', 'steps': []}", "no times"),
        ("return 7", "no times"),
        ("return {'first': None, 'steps': []}", "did not time the prompt"),
    ],
)
def test_failures_of_a_test(
    body: str, reason: str, backend: Callable[[str], Path], tiny: Path, tmp_path: Path
) -> None:
    cases = cases_of(engine(backend(WORSE + body + "\n")), tiny, tmp_path, TESTS[:2])
    run_all(cases, 1)
    assert [case.status for case in cases] == ["failed", "measured"]
    assert reason in cases[0].reason


def test_failure_in_a_later_round_is_kept(backend: Callable[[str], Path], tiny: Path, tmp_path: Path) -> None:
    body = (
        f"self.loads += 1\n{' ' * 8}return {{'first': 1.0, 'steps': []}} if self.loads < 3 else self.fail()\n"
    )
    cases = cases_of(engine(backend(WORSE + body)), tiny, tmp_path, TESTS[:1])
    run_all(cases, 3)
    assert cases[0].status == "failed"
    assert cases[0].result is None


def test_what_is_missing_or_does_not_fit(backend: Callable[[str], Path], tiny: Path, tmp_path: Path) -> None:
    missing = cases_of(engine(backend("import no_such_engine")), tiny, tmp_path)
    run_all(missing)
    assert [case.status for case in missing] == ["missing"] * 3
    assert "no_such_engine is not installed" in missing[0].reason
    assert missing[0].reason.endswith("pip install fake")
    assert peer_records(missing, [])[0]["fix"] == "pip install fake"
    assert len(peer_table(missing, []).rows) == 1  # said once
    other = cases_of(engine(backend("")), tiny, tmp_path, codecs=("int4",))
    run_all(other)
    assert {case.status for case in other} == {"unsupported"}
    assert "nothing at the bits of int4, only of int8" in other[0].reason
    cache = cases_of(engine(backend(""), caches=("f32",)), tiny, tmp_path)
    assert "compared as f32, not f16" in cache[0].reason
    nowhere = cases_of(engine(backend("")), tiny, tmp_path, python=str(tmp_path / "nowhere"))
    run_all(nowhere)
    assert {case.status for case in nowhere} == {"failed"}


def test_engines() -> None:
    assert set(ENGINES) == {"llama.cpp", "transformers", "torch", "ctranslate2"}
    assert all(engine.backend.is_file() for engine in ENGINES.values())
    with pytest.raises(InputError, match=r"unknown[\s\S]*llama\.cpp"):
        find_engine("vllm")


# --- files


def stored_types(path: Path) -> set[str]:
    model = open_model(path)
    try:
        names = [name for name in model.weights.names() if len(model.weights.shape(name)) == 2]
        return set(map(model.weights.source_type, names))
    finally:
        model.close()


def test_files_of_a_model(tmp_path: Path) -> None:
    model = written(tmp_path / "model", configured("silu"))
    llama, folders = ENGINES["llama.cpp"], ENGINES["transformers"]
    (tmp_path / "a").mkdir()
    files = PeerFiles(tmp_path / "a", model)
    assert files.find(folders, "f32") == model
    path = files.find(llama, "int8")
    assert files.find(llama, "int8") == path
    assert stored_types(path) == {"Q8_0"}
    (tmp_path / "b").mkdir()
    own = PeerFiles(tmp_path / "b", path)
    assert own.find(llama, "int8") == path  # it is stored so
    assert stored_types(own.find(llama, "bf16")) == {"BF16"}
    folder = own.find(folders, "bf16")
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert own.find(folders, "bf16") == folder
    assert own.find(ENGINES["torch"], "int8") != folder


def test_peers_get_a_delta_as_a_whole_model(tmp_path: Path) -> None:
    base = build_tiny_chat(tmp_path / "base")
    convert_to_delta(changed(base, tmp_path / "adapted"), tmp_path / "delta", str(base), base)
    (tmp_path / "files").mkdir()
    folder = PeerFiles(tmp_path / "files", tmp_path / "delta").find(ENGINES["transformers"], "f32")
    whole, delta = SafeTensors(folder / "model.safetensors"), open_model(tmp_path / "delta")
    name = "layers.0.down.weight"
    np.testing.assert_array_equal(
        whole.read("model.layers.0.mlp.down_proj.weight"), np.asarray(delta.weights.read(name))
    )
    assert (folder / "config.json").is_file()
    delta.close()
    whole.close()


def test_files_of_a_shape(tmp_path: Path) -> None:
    config = replace(
        shape("tinyllama-1.1b"),
        vocab_size=64,
        d_model=64,
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        head_dim=32,
        d_ff=96,
    )
    llama = ENGINES["llama.cpp"]
    tied = PeerFiles(tmp_path, replace(config, tied_head=True))
    assert stored_types(tied.find(llama, "int8")) == {"Q8_0"}
    model = open_model(tied.find(llama, "int8"))
    assert model.config.tied_head
    assert model.weights.shape("layers.0.gate.weight") == (96, 64)
    model.close()
    files = PeerFiles(tmp_path, config)
    assert stored_types(files.find(llama, "int4")) == {"Q4_1", "Q8_0"}  # embedding and head are of 8 bits
    assert stored_types(files.find(llama, "bf16")) == {"BF16"}
    folder = files.find(ENGINES["transformers"], "f32")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    with pytest.raises(CacheError, match="No such file"):
        PeerFiles(tmp_path / "nowhere", config).find(llama, "int8")
    with pytest.raises(UnsupportedModelError, match="not of opt"):
        write_synthetic_gguf(tmp_path / "opt.gguf", shape("opt-1.3b"), "Q8_0")


# --- the command


def test_bench_with_peers(
    backend: Callable[[str], Path],
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dejavu.bench.suite.read_bandwidth", lambda: lambda threads: 1e9)
    monkeypatch.setitem(ENGINES, "llama.cpp", engine(backend(f"{WORSE}self.leave()\n")))
    monkeypatch.setitem(ENGINES, "torch", engine(tmp_path / "backend.py", name="torch", types={"int4": "x"}))
    base = ("bench", str(tiny), "-p", "8", "-n", "4", "-r", "2", "-t", "1", "--codec", "int8")
    base += ("--peer", "llama.cpp", "--peer", "torch", "--peer-python", sys.executable)
    assert run([*base, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [record["status"] for record in found["peers"]] == ["failed", "measured"] + ["unsupported"] * 2
    assert len(found["peers"][1]["seconds"]) == 2
    assert found["peers"][1]["ratios"]["off"] > 0
    assert len(found["results"]) == 2
    assert run(base) == 0
    assert all(text in capsys.readouterr().out for text in ("Peers, in the same rounds",))
    assert run([*base, "-o", "csv"]) == 0
    assert "status 3" in capsys.readouterr().err
    assert not list(tmp_path.glob("dejavu-bench-*"))
    assert run(["bench", str(tiny), "--peer", "vllm"]) == InputError.exit_code


@pytest.mark.parametrize(
    ("name", "codec"),
    [("transformers", "f32"), ("torch", "int8"), ("ctranslate2", "f32"), ("ctranslate2", "int8")],
)
def test_peers_of_folders_run_the_same_one(
    name: str, codec: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("transformers", name):
        pytest.importorskip(package)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cases = make_cases((codec,), ("f16",), (1,), TESTS)
    files = PeerFiles(tmp_path, tiny)
    found = make_peer_cases([ENGINES[name]], cases, python=sys.executable, files=files)
    run_all(found, 1)
    assert [(case.status, case.reason) for case in found] == [("measured", "")] * 3
    assert os.fspath(tiny) == str(files.find(ENGINES[name], "f32"))
