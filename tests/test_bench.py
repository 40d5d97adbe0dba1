"""Benchmark logic: sweeps, interleaving, statistics, bytes, reports, shapes."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dejavu.bench.cases import Setting, make_cases, make_tests, name_dense, parse_choices, parse_sweep
from dejavu.bench.cases import Test as BenchTest
from dejavu.bench.details import Table, memory_table, part_table, part_times, step_table
from dejavu.bench.report import HEADERS, records, rows, table_to_markdown, to_csv, to_json, to_markdown
from dejavu.bench.results import Result, Run
from dejavu.bench.runner import Subject, run_cases
from dejavu.bench.shapes import SHAPES, shape
from dejavu.bench.timing import sequence
from dejavu.environment import peak_rss_bytes
from dejavu.errors import InputError, NumericsError
from dejavu.inventory import inventory


class FakeCache:
    def __init__(self) -> None:
        self.fed: list[int] = []


class FakeExecutor:
    """Takes 1 ms per decode step and 0.1 ms per prompt token of a fake clock; logs what it is fed."""

    def __init__(self, log: list[Any], now: list[float], setting: Setting) -> None:
        self.log, self.now, self.setting, self.closed = log, now, setting, False
        self.caches: list[FakeCache] = []
        self.value = 0.0
        self.packed = SimpleNamespace(nbytes=1 << 20)
        self.decoded = 0

    def new_cache(self) -> FakeCache:
        self.caches.append(FakeCache())
        return self.caches[-1]

    def prefill(self, tokens: np.ndarray, cache: FakeCache, *, all_logits: bool = False) -> np.ndarray:
        assert 1 <= tokens.size <= 512
        assert not all_logits
        cache.fed += tokens.tolist()
        self.now[0] += 1e-4 * tokens.size
        self.log.append(("prefill", self.setting.codec, tokens.size))
        return np.full((1, 8), self.value, np.float32)

    def decode(self, tokens: np.ndarray, caches: list[FakeCache]) -> np.ndarray:
        assert tokens.flags.c_contiguous
        for token, cache in zip(tokens.tolist(), caches, strict=True):
            cache.fed.append(token)
        self.now[0] += 1e-3
        self.log.append(("decode", self.setting.codec, tokens.size))
        self.decoded += tokens.size
        return np.full((tokens.size, 8), self.value, np.float32)

    plan_nbytes = 512

    def touched_bytes(self, context: int) -> dict[str, int]:
        return {"attention": 1000, "mlp": 2000, "head": 500, "kv": 10 * context}

    @property
    def last_stats(self) -> dict[str, Any]:
        ms = {"attention": 0.3, "mlp": 0.5, "head": 0.1, "predicting": 0.0, "rest": 0.06, "waiting": 0.04}
        return {"tokens": 0, "neurons": [0.0], "heads": [0.0], "decoded": self.decoded, "ms": ms,
                "predictor_share": 0.0}  # fmt: skip

    def reset_stats(self) -> None:
        self.decoded = 0

    def close(self) -> None:
        self.closed = True


class Bench:
    """A subject over fake executors."""

    def __init__(self, value: float = 0.0) -> None:
        self.log: list[Any] = []
        self.now = [0.0]
        self.loaded: list[FakeExecutor] = []
        self.subject = Subject(
            name="fake",
            parameters=134_515_008,
            max_context=2048,
            size=lambda codec: {"int8": 10 << 20, "int4": 5 << 20}[codec],
            tokens=np.arange(100, dtype=np.int32),
            load=self._load,
            choose=lambda setting: None,
        )
        self.value = value

    def _load(self, setting: Setting) -> Any:
        self.loaded.append(FakeExecutor(self.log, self.now, setting))
        self.loaded[-1].value = self.value
        return self.loaded[-1]

    def run(
        self, tests: tuple[BenchTest, ...], codecs: tuple[str, ...] = ("int8",), **options: Any
    ) -> list[Result]:
        cases = make_cases(codecs, ("f16",), (2,), tests)
        return run_cases(self.subject, cases, clock=lambda: self.now[0], **options)


def result(
    seconds: tuple[float, ...],
    test: BenchTest,
    touched: dict[str, int] | None = None,
    stats: dict[str, Any] | None = None,
    bandwidth: float | None = None,
    **more: Any,
) -> Result:
    (case,) = make_cases(("int8",), ("f16",), (2,), (test,))
    steps = test.tokens if test.kind == "tg" else 0
    runs = (Run(s, s / 2, (s / max(steps, 1),) * steps, touched, stats or {}, bandwidth) for s in seconds)
    return Result(case, tuple(runs), **more)


PLANNED = {
    "tokens": 10,
    "neurons": [0.2, 0.4],
    "heads": [0.5, 1.0],
    "decoded": 10,
    "ms": {"attention": 1.0, "mlp": 2.0, "head": 0.5, "predicting": 0.4, "rest": 0.1, "waiting": 0.0},
    "predictor_share": 0.1,
}
TOUCHED = {"attention": 1_000_000, "mlp": 5_000_000, "head": 500_000, "predictors": 500_000, "kv": 1_000_000}


def test_statistics() -> None:
    tg = result((0.1, 0.2, 0.4, 0.5, 1.0), BenchTest("tg", 10), touched=TOUCHED, bandwidth=1e9)
    assert tg.tokens_per_s == pytest.approx((100, 50, 25, 20, 10))
    assert tg.median == pytest.approx(25)
    assert tg.spread == pytest.approx((50 - 20) / 2)
    assert tg.ms_per_token == pytest.approx(40)
    assert tg.bytes_per_s == pytest.approx(200e6)
    assert tg.bandwidth_share == pytest.approx(0.2)
    batch = result((1.0, 1.0), BenchTest("tg", 10, 8))
    assert batch.median == pytest.approx(80)
    assert batch.ms_per_token == pytest.approx(100)
    assert batch.spread == 0
    assert batch.bytes_per_s is None
    assert batch.bandwidth_share is None


def test_latency_quantiles_are_over_the_steps_of_all_repeats() -> None:
    test = BenchTest("tg", 4)
    (case,) = make_cases(("int8",), ("f16",), (2,), (test,))
    steps = [(0.01, 0.02, 0.03, 0.04), (0.05, 0.06, 0.07, 0.08)]
    both = Result(case, tuple(Run(sum(s), s[0], s) for s in steps))
    assert both.step_quantile(0.5) == pytest.approx(0.045)
    assert both.step_quantile(1.0) == pytest.approx(0.08)
    assert both.ttft == pytest.approx(0.03)
    assert result((1.0,), BenchTest("pp", 512)).step_quantile(0.5) is None


def test_what_a_plan_did() -> None:
    planned = result((0.1, 0.2), BenchTest("tg", 10), TOUCHED, PLANNED, bandwidth=1e9)
    assert planned.density == pytest.approx(0.3)
    assert planned.heads_density == pytest.approx(0.75)
    assert planned.predictor_share == pytest.approx(0.1)
    parts = part_times(planned)
    assert parts is not None
    assert [*parts] == ["attention", "mlp", "head", "predicting", "rest", "waiting"]
    assert (parts["attention"].bytes, parts["attention"].bandwidth_ms) == (2_000_000, pytest.approx(2.0))
    assert (parts["predicting"].ms, parts["predicting"].bytes) == (pytest.approx(0.4), 500_000)
    assert parts["waiting"].bytes is None
    batch = result((0.1,), BenchTest("tg", 10, 4), None, PLANNED, bandwidth=1e9)
    found = part_times(batch)
    assert found is not None
    assert (found["mlp"].ms, found["mlp"].bytes) == (pytest.approx(8.0), None)
    uncounted = result((0.1,), BenchTest("tg", 10, 16), TOUCHED, PLANNED | {"decoded": 0})
    assert part_times(uncounted) is None
    assert uncounted.predictor_share is None


def test_tables_of_details() -> None:
    planned = result(
        (0.1, 0.2),
        BenchTest("tg", 10),
        TOUCHED,
        PLANNED,
        bandwidth=1e9,
        packed_bytes=134_515_008,
        predictor_bytes=1 << 20,
        recall=0.912,
    )
    prompt = result((0.5,), BenchTest("pp", 512), packed_bytes=134_515_008, predictor_bytes=1 << 20)
    subject = Bench().subject
    steps, memory, parts = (
        step_table([planned, prompt]),
        memory_table(subject, [planned, prompt]),
        part_table([planned, prompt]),
    )
    assert steps.rows[0] == (
        "int8", "off", "2", "tg10", "75.000", "15.000", "20.000", "20.000", "30", "75", "91", "10",
    )  # fmt: skip
    assert steps.rows[1][4:] == ("250.000", "", "", "", "", "", "", "")
    assert memory.rows == [("int8", "off", "128.3 MiB", "1.0 MiB", "8.06", "3.97")]
    assert parts.rows[1][4:] == ("mlp", "2.000", "50", "5.00", "5.000", "250")
    assert parts.rows[-1][4:] == ("waiting", "0.000", "0", "", "", "")
    for table in (steps, memory, parts):
        assert all(len(row) == len(table.headers) for row in table.rows)
    assert (
        table_to_markdown(Table("T", ("a", "b"), [("1", "2")]))
        == "T\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    )


def test_repeats_are_interleaved_after_warming_up() -> None:
    bench = Bench()
    measured: list[int] = []

    def bandwidth(threads: int) -> float:
        measured.append(threads)
        return 1e9 * len(measured)

    tests = (BenchTest("pp", 700), BenchTest("tg", 3))
    results = bench.run(tests, ("int8", "int4"), repeats=3, read_bandwidth=bandwidth)
    warm = [("prefill", "int8", 32), *[("decode", "int8", 1)] * 3]
    warm += [(kind, "int4", n) for kind, _, n in warm]
    one = [("prefill", "int8", 512), ("prefill", "int8", 188), *[("decode", "int8", 1)] * 3]
    one += [(kind, "int4", n) for kind, _, n in one]
    assert bench.log == warm + one * 3
    assert [r.case.test.label for r in results] == ["pp700", "tg3"] * 2
    np.testing.assert_allclose(results[0].seconds, [0.07] * 3)
    np.testing.assert_allclose(results[1].seconds, [0.003] * 3)
    assert measured == [2] * 2 * 4 * 3
    first = [run.bandwidth for run in results[0].runs]  # each between what came before and after it
    assert first == [pytest.approx(2 / (1 / n + 1 / (n + 1)) * 1e9) for n in (1, 9, 17)]
    assert results[0].step_bytes is None
    assert results[0].density is None
    assert results[0].ttft == pytest.approx(0.07)
    assert results[1].touched == {"attention": 1000, "mlp": 2000, "head": 500, "kv": 10}
    assert results[1].step_bytes == 3500 + 10 * 1
    assert results[1].step_quantile(0.95) == pytest.approx(0.001)
    assert results[1].ttft == pytest.approx(0.001)  # nothing comes before the first step
    assert results[1].density == 1.0
    assert results[1].part_ms is not None
    assert results[1].packed_bytes == 1 << 20
    assert results[1].predictor_bytes == 512
    assert [run.stats["decoded"] for run in results[1].runs] == [3, 3, 3]
    assert all(executor.closed for executor in bench.loaded)


def test_batch_reads_different_parts_of_the_text() -> None:
    bench = Bench()
    (only,) = bench.run((BenchTest("tg", 6, batch=4, depth=5),), repeats=1)
    fed = [cache.fed for cache in bench.loaded[0].caches[-4:]]
    assert fed == [[(start + i) % 100 for i in range(11)] for start in (0, 25, 50, 75)]
    assert only.step_bytes == 3500 + 4 * 10 * (5 + 3)
    np.testing.assert_allclose(only.seconds, [0.006])  # filling the cache is not among the steps
    assert only.ttft == pytest.approx(4 * 5e-4)


def test_sequence_begins_again() -> None:
    assert sequence(np.arange(3, dtype=np.int32), 2, 5).tolist() == [2, 0, 1, 2, 0]


def test_refuses_broken_or_impossible_runs() -> None:
    broken = Bench(value=float("nan"))
    with pytest.raises(NumericsError, match="not finite"):
        broken.run((BenchTest("tg", 3),))
    assert broken.loaded[0].closed
    with pytest.raises(InputError, match="context of 2049"):
        Bench().run((BenchTest("tg", 2000, depth=49),))
    with pytest.raises(InputError, match="0 repeats"):
        Bench().run((BenchTest("tg", 3),), repeats=0)


def test_labels_and_cases() -> None:
    assert BenchTest("tg", 128, 8, 1024).label == "tg128 b8 @1024"
    tests = make_tests((512, 0), (128,), (1, 8))
    assert [test.label for test in tests] == ["pp512", "tg128", "tg128 b8"]
    cases = make_cases(("int8", "int4"), ("f16",), (1, 2), tests)
    assert len(cases) == 12
    assert len({case.setting for case in cases}) == 4
    with pytest.raises(InputError, match="both 0"):
        make_tests((0,), (0,), (1,))


def test_a_plan_that_there_is_not_is_called_dense() -> None:
    tests = make_tests((8,), (4,), (1,))
    cases = make_cases(("bf16", "int8"), ("f16",), (2,), tests, ("off", "auto"))
    named, dense = name_dense(cases, lambda setting: setting.codec == "bf16")
    assert [(case.setting.codec, case.setting.plan, case.test.kind) for case in named] == [
        ("bf16", "off", "pp"),
        ("bf16", "off", "tg"),
        ("int8", "off", "pp"),
        ("int8", "off", "tg"),
        ("int8", "auto", "pp"),
        ("int8", "auto", "tg"),
    ]
    assert dense == (Setting("bf16", "f16", 2, "auto"),)


def test_parse_sweep() -> None:
    assert parse_sweep("512", name="-p") == (512,)
    assert parse_sweep("128, 512,128", name="-p") == (128, 512)
    for bad in ("", "a", "1,,2", "-1", "1.5", "1e3"):
        with pytest.raises(InputError, match="-p"):
            parse_sweep(bad, name="-p")
    with pytest.raises(InputError, match="from 1"):
        parse_sweep("0", name="-b", low=1)


def test_parse_choices() -> None:
    assert parse_choices("int8, bf16,int8", name="--codec", allowed=("bf16", "int8")) == ("int8", "bf16")
    with pytest.raises(InputError, match=r"--codec: 'int9'.*\n.*bf16, int8"):
        parse_choices("int9", name="--codec", allowed=("bf16", "int8"))


@pytest.fixture
def report() -> tuple[Subject, list[Result]]:
    tg = result((0.1, 0.2), BenchTest("tg", 10), touched=TOUCHED, stats=PLANNED, bandwidth=1e9)
    return Bench().subject, [tg, result((0.5, 0.5), BenchTest("pp", 512))]


def test_rows_and_markdown(report: tuple[Subject, list[Result]]) -> None:
    first, second = rows(*report)
    assert first == (
        "fake", "134.5M", "10.0 MiB", "int8", "f16", "off", "2", "tg10", "75.00 ± 12.50", "15.000", "0.5", "60",
    )  # fmt: skip
    assert second[-3:] == ("0.977", "", "")
    lines = to_markdown(*report).splitlines()
    assert len(lines) == 4
    assert all(line.count("|") == len(HEADERS) + 1 for line in lines)


def test_json_and_csv_hold_the_same(report: tuple[Subject, list[Result]]) -> None:
    data = json.loads(to_json(*report, {"cpu": "x"}, command="dejavu bench tiny"))
    assert data["machine"] == {"cpu": "x"}
    assert (data["kind"], data["schema"], data["command"]) == ("bench", 1, "dejavu bench tiny")
    assert data["fingerprint"] == report[0].fingerprint
    assert 0 <= data["peak_rss_bytes"] <= peak_rss_bytes()
    assert data["results"] == json.loads(json.dumps(records(*report)))
    table = list(csv.DictReader(io.StringIO(to_csv(*report))))
    assert [row["test"] for row in table] == ["tg10", "pp512"]
    assert [float(x) for x in table[0]["seconds"].split()] == data["results"][0]["seconds"]
    assert json.loads(table[0]["touched_bytes"]) == TOUCHED
    assert float(table[0]["tokens_per_s"]) == data["results"][0]["tokens_per_s"]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("opt-1.3b", 1.316),
        ("opt-6.7b", 6.658),
        ("llama-1b", 1.236),
        ("llama-3b", 3.213),
        ("tinyllama-1.1b", 1.100),
    ],
)
def test_shapes_have_the_published_parameter_counts(name: str, billions: float) -> None:
    total = sum(part.parameters for part in inventory(shape(name)).values())
    assert total / 1e9 == pytest.approx(billions, abs=0.001)


def test_unknown_shape() -> None:
    with pytest.raises(InputError, match="unknown shape") as caught:
        shape("opt-13b")
    assert all(name in str(caught.value) for name in SHAPES)
