"""dejavu report: files that the other verbs wrote, on one page; what does not belong on it; how it looks."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dejavu.cli.app import run
from dejavu.errors import CacheError, InputError, PlanError
from dejavu.models.loading import open_model
from dejavu.models.spec import SHIPPED
from dejavu.plan import AccessPlan, Threshold
from dejavu.report import Interval, Row, interval_chart, row_chart
from dejavu.report.axes import Axis
from dejavu.results_page.speed import memory_table
from test_report import NASTY, check_html
from tiny_chat import build_tiny_chat

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TEXT = "the cat sat on the mat and looked at the moon; " * 14
Dejavu = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """eval.json, bench.json, analysis/, plan/ of one tiny model, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("results")
    model = str(build_tiny_chat(folder / "model", context=256))
    opened = open_model(Path(model))
    plan = AccessPlan.uniform(
        opened.weights.fingerprint, opened.config.n_layers, neurons=Threshold(density=0.3), name="third"
    )
    opened.close()
    plan.save(folder / "plan")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    questions = [{"context": f"{i} is", "choices": [" odd", " even"], "gold": 1 - i % 2} for i in range(12)]
    (folder / "quiz.jsonl").write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEJAVU_CACHE", str(folder / "cache"))
        patch.setattr("dejavu.bench.suite.read_bandwidth", lambda: lambda threads: 1e9)
        text = ["--text", str(folder / "text.txt")]
        plans = ["--plan", "off", "--plan", str(folder / "plan")]
        tasks = ["--tasks", str(folder / "quiz.jsonl")]
        output = ["-o", str(folder / "eval.json")]
        assert run(["eval", model, *tasks, *text, *plans, "--codec", "int8", *output]) == 0
        reference = ["--executor", "reference", "--codec", "f32", "--kv", "f32"]
        assert run(["analyze", model, *text, *reference, "-o", str(folder / "analysis")]) == 0
        document = _captured(
            ["bench", model, "-p", "8", "-n", "4", "-r", "2", "-t", "1", "--codec", "int8"], folder
        )
        (folder / "bench.json").write_text(document, encoding="utf-8")
    rows = [
        {"name": name, "kind": kind, "text": text, "tokens": 9, "ppl_ratio": ratio}
        for name, kind, ratio in (
            ("int8", "dense", 1.002),
            ("llama.cpp Q2_K", "llama.cpp", 2.3),
            ("third", "plan", 1.1),
        )
        for text in ("a", "b")
    ]
    rows += [
        {"name": name, "tokens_per_s": 80.0 + i, "spread": 1}
        for i, name in enumerate(("int8", "llama.cpp Q2_K"))
    ]
    (folder / "frontier.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def _captured(args: list[str], folder: Path) -> str:
    """What `dejavu bench --plan off,PLAN --json` prints."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run([*args, "--plan", f"off,{folder / 'plan'}", "--json"]) == 0
    return out.getvalue()


@pytest.fixture
def report(results: Path, tmp_path: Path, capsys: Any) -> Dejavu:
    def call(*paths: Path | str, more: tuple[str, ...] = ()) -> SimpleNamespace:
        output = tmp_path / "page.html"
        capsys.readouterr()
        given = [str(results / path) for path in paths]
        code = run(["report", *given, "-o", str(output), "--json", *more])
        out, _ = capsys.readouterr()
        html = output.read_text(encoding="utf-8") if output.exists() else ""
        return SimpleNamespace(code=code, json=json.loads(out), html=html, output=output)

    return call


def headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


ALL = ("eval.json", "bench.json", "analysis", "plan", "frontier.jsonl")


def test_everything_on_one_page(report: Dejavu, results: Path) -> None:
    found = report(*ALL, more=("--title", NASTY))
    assert found.code == 0
    check_html(found.html)
    assert headings(found.html) == [
        "Quality and speed",
        "Tasks",
        "Perplexity, and distance from the base",
        "Speed",
        "Access plans",
        "Is there contextual sparsity?",
        "What is not here",
    ]
    assert [m["command"].split()[1] for m in found.json["missing"]] == ["adapt"]
    evaluation = json.loads((results / "eval.json").read_text())
    assert found.json["fingerprint"] == evaluation["fingerprint"]
    assert evaluation["command"].split()[0] in found.html
    dense, sparse = evaluation["runs"]
    accuracy = dense["tasks"]["quiz"]["metrics"]["acc"]
    assert f"<td>{accuracy['value']:.3f} ± {accuracy['stderr']:.3f}</td>" in found.html
    difference = sparse["difference"]["tasks"]["quiz"]["acc"]
    assert f"<td>{difference['value']:+.3f} ± {difference['stderr']:.3f}</td>" in found.html
    decoded = json.loads((results / "bench.json").read_text())["results"]
    for record in decoded:
        assert f"{record['tokens_per_s']:.1f} ± {record['tokens_per_s_spread']:.1f}" in found.html
    assert json.loads((results / "analysis" / "analysis.json").read_text())["verdict"][
        0
    ] in found.html.replace("&#x27;", "'")


def test_the_frontier_joins_what_was_scored_with_what_was_timed(report: Dejavu, results: Path) -> None:
    found = report("eval.json", "bench.json", "plan").json["frontier"]
    runs = json.loads((results / "eval.json").read_text())["runs"]
    decoded = json.loads((results / "bench.json").read_text())["results"]
    speeds = [r["tokens_per_s"] for r in decoded if r["kind"] == "tg"]
    assert [(s["group"], s["speed"]) for s in found] == [
        ("dejavu, dense", speeds[0]),
        ("dejavu, by a plan", speeds[1]),
    ]
    for setting, entry in zip(found, runs, strict=True):
        assert setting["ratio"] == pytest.approx(entry["texts"]["text.txt"]["metrics"]["ppl_ratio"]["value"])
    alone = report("eval.json", "bench.json")  # the records themselves say which plan was timed
    assert alone.json["frontier"] == found
    assert "A plan was timed that the frontier leaves out" not in alone.html
    assert all(
        command in alone.html
        for source in alone.json["sources"]
        for command in map(escape, source["commands"])
    )


def timed(results: Path, path: Path, **changes: Any) -> Path:
    """bench.json with its planned records changed; None leaves a field out."""
    document = json.loads((results / "bench.json").read_text())
    planned = [record for record in document["results"] if record["plan"] != "off"]
    for record in planned:
        record |= changes
        for name in [name for name, value in changes.items() if value is None]:
            del record[name]
    path.write_text(json.dumps(document))
    return path


def groups(found: SimpleNamespace) -> list[str]:
    return [setting["group"] for setting in found.json["frontier"]]


BOTH = ["dejavu, dense", "dejavu, by a plan"]


def test_plans_are_joined_by_what_they_are(report: Dejavu, results: Path, tmp_path: Path) -> None:
    runs = json.loads((results / "eval.json").read_text())["runs"]
    records = json.loads((results / "bench.json").read_text())["results"]
    digests = [run["plan_sha256"] for run in runs]
    assert digests[0] is None
    assert {record["plan_sha256"] for record in records} == set(digests)
    auto = timed(results, tmp_path / "auto.json", plan="auto")
    assert groups(report("eval.json", auto)) == BOTH
    another = timed(results, tmp_path / "another.json", plan_sha256="0" * 64)  # its folder has the same name
    assert groups(report("eval.json", another, "plan")) == BOTH[:1]


def test_older_results_tell_their_plan_by_its_name(report: Dejavu, results: Path, tmp_path: Path) -> None:
    older = timed(results, tmp_path / "older.json", plan_sha256=None)
    assert groups(report("eval.json", older, "plan")) == BOTH
    alone = report("eval.json", older)
    assert groups(alone) == BOTH[:1]
    assert "A plan was timed that the frontier leaves out" in alone.html


def test_each_setting_is_there_once_and_beside_what_it_was_timed_with(
    report: Dejavu, results: Path, tmp_path: Path
) -> None:
    """Dense weights are in several files, measured on days of different speed."""
    shutil.copy(results / "eval.json", tmp_path / "again.json")
    document = json.loads((results / "bench.json").read_text())
    dense = [record for record in document["results"] if record["plan"] == "off"]
    for record in dense:
        record["tokens_per_s"] *= 3
    (tmp_path / "fast.json").write_text(json.dumps(document | {"results": dense}))
    expected = report("eval.json", "bench.json").json["frontier"]
    for benches in (("bench.json", tmp_path / "fast.json"), (tmp_path / "fast.json", "bench.json")):
        assert report("eval.json", tmp_path / "again.json", *benches).json["frontier"] == expected
    only = report("eval.json", tmp_path / "fast.json").json["frontier"]
    assert [s["speed"] for s in only] == pytest.approx([3 * expected[0]["speed"]])


def test_memory_of_plans_of_one_name(results: Path) -> None:
    records = json.loads((results / "bench.json").read_text())["results"]
    planned = next(record for record in records if record["plan"] != "off")
    other = planned | {"plan": "elsewhere/plan", "plan_sha256": "0" * 64}
    table = memory_table([*records, other])
    assert table is not None
    assert [row[0] for row in table.rows] == ["int8", "int8, plan plan", "int8, plan plan"]


def test_a_model_that_predicts_nothing(report: Dejavu, results: Path, tmp_path: Path) -> None:
    """Infinity and null are figures that there may be."""
    text = (results / "eval.json").read_text()
    for value in ("Infinity", "null"):
        changed, count = re.subn(r'("value": )[\d.e+-]+', rf"\g<1>{value}", text)
        assert count > 10
        (tmp_path / "eval.json").write_text(changed)
        found = report(tmp_path / "eval.json", "bench.json", "plan")
        assert found.code == 0
        assert found.json["frontier"] == []


def test_the_frontier_of_a_file(report: Dejavu) -> None:
    found = report("frontier.jsonl")
    assert [(s["name"], s["group"], s["speed"]) for s in found.json["frontier"]] == [
        ("int8", "dejavu, dense", 80),
        ("Q2_K", "llama.cpp", 81),
    ]
    assert found.json["frontier"][1]["ratio"] == pytest.approx(2.3)
    assert "Fastest within 2%" in found.html
    assert headings(found.html) == ["Quality and speed", "What is not here"]


@pytest.mark.parametrize(
    ("path", "heading", "missing"),
    [
        ("eval.json", "Tasks", "bench"),
        ("bench.json", "Speed", "eval"),
        ("analysis", "Is there contextual sparsity?", "train"),
        ("analysis/analysis.json", "Is there contextual sparsity?", "train"),
        ("plan", "Access plans", "analyze"),
        ("plan/plan.json", "Access plans", "analyze"),
    ],
)
def test_only_what_was_given_and_how_to_get_the_rest(
    report: Dejavu, path: str, heading: str, missing: str
) -> None:
    found = report(path)
    assert found.code == 0
    check_html(found.html)
    assert heading in headings(found.html)
    assert f"<code>dejavu {missing} " in found.html
    assert len(headings(found.html)) <= 3


def test_a_model_that_has_only_plans(report: Dejavu) -> None:
    """As the one that comes with dejavu."""
    found = report(SHIPPED / "smollm2-sparse")
    assert found.code == 0
    check_html(found.html)
    assert "adapted, density 0.25" in found.html


def test_adapted_weights_share_the_page_of_their_base(report: Dejavu, results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapted"
    AccessPlan.uniform("f" * 64, 2, neurons=Threshold(density=0.25), name="adapted").save(folder / "plan")
    curve = [
        {"tokens": 1000 * i, "seconds": 60.0 * i, "density": 0.25, "ratio": 1 + 0.5 / (i + 1)}
        for i in range(9)
    ]
    document = {
        "command": "dejavu adapt model",
        "base": "model",
        "density": 0.25,
        "tokens": 8000,
        "seconds": 480.0,
        "curve": curve,
        "native": {"tokens": 500, "base_codec": "bf16", "ppl_ratio": 1.07, "density": 0.251},
        "options": {"codec": "int8"},
    }
    (folder / "adaptation.json").write_text(json.dumps(document))
    other = json.loads((results / "eval.json").read_text()) | {"fingerprint": "f" * 64}
    (tmp_path / "eval-adapted.json").write_text(json.dumps(other))
    both = ("eval.json", "bench.json", "plan", tmp_path / "eval-adapted.json")
    refused = report(*both)
    assert refused.code == InputError.exit_code
    assert "different models" in refused.json["error"]["message"]
    found = report(*both, folder)
    assert found.code == 0
    check_html(found.html)
    assert "Adaptation to sparse MLPs" in headings(found.html)
    assert "1.0700 times the perplexity" in found.html
    assert found.json["fingerprint"] == json.loads((results / "eval.json").read_text())["fingerprint"]
    assert len(found.json["frontier"]) == 2  # the adapted runs were not timed
    AccessPlan.uniform("f" * 64, 2, neurons=Threshold(density=0.5), name="gentle").save(
        folder / "gentler" / "0.5"
    )
    gentle = report(*both, folder)
    assert [Path(s["path"]).name for s in gentle.json["sources"][-3:]] == ["adaptation.json", "plan", "0.5"]
    assert ">gentle<" in gentle.html


def test_an_adapted_model_is_not_said_to_be_missing(report: Dejavu, results: Path, tmp_path: Path) -> None:
    """Where its folder came without the curve, and where a frontier has it."""
    own = AccessPlan.uniform("f" * 64, 2, neurons=Threshold(density=0.25), name="adapted")
    own.save(tmp_path / "adapted" / "plan")
    other = json.loads((results / "eval.json").read_text()) | {"fingerprint": "f" * 64}
    (tmp_path / "eval-adapted.json").write_text(json.dumps(other))
    row = {"name": "x", "kind": "adapted", "text": "t", "tokens": 9, "ppl_ratio": 1.1}
    (tmp_path / "frontier.jsonl").write_text(json.dumps(row))

    def commands(*more: Path | str) -> list[str]:
        return [entry["command"].split()[1] for entry in report("eval.json", *more).json["missing"]]

    assert "adapt" in commands()
    assert "adapt" in commands("frontier.jsonl")
    assert "adapt" not in commands(tmp_path / "eval-adapted.json", tmp_path / "adapted")
    assert "adapt" not in commands(tmp_path / "frontier.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": []}, "runs is empty"),
        ({"runs": [{"name": "x"}]}, "runs[0].codec is missing"),
        ({"schema": 2}, "schema 2"),
        ({"fingerprint": 7}, "fingerprint is 7; text is needed"),
        ({"machine": {"cpu": "x", "logical_cpus": True}}, "machine.logical_cpus is True; a number is needed"),
        ({"kind": "other"}, "no result of dejavu"),
    ],
)
def test_malformed_results(report: Dejavu, results: Path, tmp_path: Path, change: Any, message: str) -> None:
    document = json.loads((results / "eval.json").read_text()) | change
    (tmp_path / "bad.json").write_text(json.dumps(document))
    found = report(tmp_path / "bad.json")
    assert found.code == InputError.exit_code
    assert message in found.json["error"]["message"]
    assert str(tmp_path / "bad.json") in found.json["error"]["message"]
    assert found.json["error"]["fix"]
    assert not found.output.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"[1, 2]", "no result of dejavu"),
        (b"hello", "line 1 is no JSON"),
        (b'{"name": "a", "tokens_per_s": 2, "spread": 0}\n{"name"', "line 2 is no JSON"),
        (b'{"name": "a", "x": 2}\n\n{"name": "b", "tokens_per_s": 1}', "line 1 has neither"),
        (b'{"name": "a", "tokens_per_s": 0, "spread": 0}', "line 1: a figure is not above 0"),
        (
            b'{"name": "a", "tokens_per_s": 1, "spread": 0, "fingerprint": "ab"}\n'
            b'{"name": "a", "tokens_per_s": 1, "spread": 0, "fingerprint": "cd"}',
            "of different models: ab and cd",
        ),
        (b'{"name": "a", "kind": "plan", "text": "t", "tokens": 1, "ppl_ratio": "1"}', "ppl_ratio is '1'"),
        (b"\xff\xfe", "no UTF-8"),
        (b"[" * 100_000, "line 1 is no JSON"),
    ],
)
def test_unknown_files(report: Dejavu, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "some.file").write_bytes(content)
    found = report(tmp_path / "some.file")
    assert found.code == InputError.exit_code
    assert message in found.json["error"]["message"]


def test_bad_paths(report: Dejavu, results: Path, tmp_path: Path) -> None:
    assert "No such file" in report("nothing.json").json["error"]["message"]
    assert "holds no plan.json" in report(tmp_path).json["error"]["message"]
    shutil.copytree(results / "plan", tmp_path / "broken")
    (tmp_path / "broken" / "plan.json").write_text("{}")
    assert report(tmp_path / "broken").code == PlanError.exit_code
    assert (
        run(["report", str(results / "eval.json"), "-o", str(results / "eval.json")]) == InputError.exit_code
    )
    assert run(["report", str(results / "eval.json"), "-o", str(tmp_path)]) == InputError.exit_code
    (tmp_path / "file").touch()
    unwritable = str(tmp_path / "file" / "page.html")
    assert run(["report", str(results / "eval.json"), "-o", unwritable]) == CacheError.exit_code
    assert json.loads((results / "eval.json").read_text())["kind"] == "eval"


def test_different_models_are_both_named(report: Dejavu, results: Path, tmp_path: Path) -> None:
    other = json.loads((results / "bench.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(other | {"fingerprint": "abc" * 20, "model": "giant"}))
    message = report("eval.json", tmp_path / "other.json").json["error"]["message"]
    assert "giant (fingerprint abcabc" in message
    assert "eval.json of model (fingerprint" in message
    for record in other["results"]:
        record["synthetic_weights"] = True
    (tmp_path / "shape.json").write_text(json.dumps(other | {"fingerprint": None, "model": "opt-1.3b"}))
    message = report("eval.json", tmp_path / "shape.json").json["error"]["message"]
    assert "opt-1.3b with synthetic weights" in message
    row = {"name": "int8", "tokens_per_s": 80, "spread": 1, "fingerprint": "dead" * 16}
    (tmp_path / "other.jsonl").write_text(json.dumps(row))
    message = report("eval.json", tmp_path / "other.jsonl").json["error"]["message"]
    assert "other.jsonl of a model (fingerprint deaddead" in message
    alone = report(tmp_path / "shape.json")
    assert "opt-1.3b (synthetic weights: speed only)" in alone.html
    assert alone.json["missing"] == []  # there is no quality to ask for


def test_parts_of_a_step_and_peers(report: Dejavu, results: Path, tmp_path: Path) -> None:
    document = json.loads((results / "bench.json").read_text())
    peer = {
        "peer": "llama.cpp",
        "variant": "",
        "version": "NAME 0.3",
        "status": "measured",
        "reason": "",
        "type": "Q8_0",
        "codec": "int8",
        "threads": 1,
        "test": "tg4",
        "ratios": {"off": 1.25, "/some/plan": 1.5},
        "tokens_per_s": 80.0,
        "tokens_per_s_spread": 1.0,
    }
    missing = peer | {"peer": "torch", "status": "missing", "reason": "pip install torch", "ratios": {}}
    del missing["tokens_per_s"]
    (tmp_path / "bench.json").write_text(json.dumps(document | {"peers": [peer, missing, missing]}))
    html = report(tmp_path / "bench.json").html
    check_html(html)
    assert "1.25, 1.50 by plan" in html
    assert html.count("missing: pip install torch") == 1
    assert "in the same rounds: NAME 0.3</caption>" in html
    part = document["results"][1]["parts"]["mlp"]
    assert f"<td>{part['ms']:.3f} ({part['bandwidth_ms']:.3f})</td>" in html
    assert f"{part['ms']:.3g} ms (memory {part['bandwidth_ms']:.3g})" in html
    del peer["ratios"]
    (tmp_path / "bench.json").write_text(json.dumps(document | {"peers": [peer]}))
    assert "peers[0].ratios is missing" in report(tmp_path / "bench.json").json["error"]["message"]


def test_charts_of_rows_and_intervals_say_what_they_were_given() -> None:
    rows = row_chart(NASTY, [Row("int8", 4.0, part=3.0, note="4 ms"), Row("int4", 2.0)], axis=Axis("ms"))
    assert rows.count("<rect") == 4
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="14"', rows)]
    assert widths == [440, 330, 220, 220]
    assert "x…</text>" in row_chart("long", [Row("x" * 99, 1.0)], axis=Axis("ms"))
    intervals = interval_chart(
        "x", [Interval(NASTY, 0.1, 0.05), Interval("b", -0.1, 0.0)], axis=Axis("less", percent=True)
    )
    assert "10% ± 5%" in intervals
    for chart in (rows, intervals):
        check_html(chart)


@pytest.fixture(scope="session")  # before `report` is made
def chromium() -> None:
    """Skips a test without Chromium, or fails it where DEJAVU_TEST_CHROMIUM is set."""
    if CHROMIUM is None:
        if os.environ.get("DEJAVU_TEST_CHROMIUM"):
            pytest.fail("DEJAVU_TEST_CHROMIUM is set, and there is no chromium")
        pytest.skip("no chromium: apt-get install chromium")


# Windows narrower than 500 pixels are not to be had: the page is put in a frame.
LOOK = """<!doctype html><style>:root{color-scheme:light dark}iframe{border:0}</style>
<iframe width="WIDTH" height="900" srcdoc="PAGE"></iframe><pre id="seen"></pre><script>
addEventListener("load", () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, width = frame.contentWindow.innerWidth;
  const wide = [...page.querySelectorAll("main *")].filter(
    e => !e.closest(".scroll, svg") && e.getBoundingClientRect().right > width + 0.5);
  const cut = [...page.querySelectorAll("svg text")].filter(e => {
    const text = e.getBoundingClientRect(), box = e.closest("svg").getBoundingClientRect();
    return text.right > box.right + 2 || text.left < box.left - 2 || text.bottom > box.bottom + 2;
  });
  const seen = {
    inner: width, scroll: page.documentElement.scrollWidth, parts: page.querySelectorAll("main *").length,
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    wide: wide.map(e => e.tagName + ": " + e.textContent.slice(0, 40)), cut: cut.map(e => e.textContent),
  };
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>"""


@pytest.mark.usefixtures("chromium")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows(report: Dejavu, tmp_path: Path, width: int, scheme: str) -> None:
    found = report(*ALL)
    page = tmp_path / "look.html"
    page.write_text(LOOK.replace("WIDTH", str(width)).replace("PAGE", escape(found.html)), encoding="utf-8")
    seen = look(page, scheme, tmp_path / "profile")
    assert seen["inner"] == width
    assert seen["parts"] > 100
    assert seen["background"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert seen["scroll"] <= width
    assert seen["wide"] == []
    assert seen["cut"] == []


@pytest.mark.usefixtures("chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_screenshots_are_of_the_width_and_the_scheme(report: Dejavu, tmp_path: Path, width: int) -> None:
    page = report(*ALL).output
    pictures = []
    for scheme in ("light", "dark"):
        path = tmp_path / f"{scheme}-{width}.png"
        browse(page, scheme, tmp_path / "profile", f"--screenshot={path}", size=(width, 900))
        pictures.append(path.read_bytes())
        assert pictures[-1].startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", pictures[-1][16:24]) == (width, 900)
    assert pictures[0] != pictures[1]


def look(page: Path, scheme: str, profile: Path) -> Any:
    """What a browser says of the page in the frame of `page`."""
    done = browse(page, scheme, profile, "--dump-dom", size=(1400, 1000))
    found = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout)
    assert found, done.stderr[-500:]
    return json.loads(unescape(found[1]))


def browse(
    page: Path, scheme: str, profile: Path, action: str, *, size: tuple[int, int]
) -> subprocess.CompletedProcess[str]:
    """Open a page in a window of `size`, and do something with it."""
    assert CHROMIUM
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ]
    options += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]
    options += [f"--window-size={size[0]},{size[1]}", action]
    return subprocess.run(
        [CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )


@pytest.mark.parametrize("value", [None, "x", "missing"])
@pytest.mark.parametrize("name", ["packed_bytes", "predictor_bytes", "ratio_to_f32"])
def test_memory_that_is_half_told(
    report: Dejavu, results: Path, tmp_path: Path, name: str, value: Any
) -> None:
    document = json.loads((results / "bench.json").read_text())
    document["results"][0][name] = value
    if value == "missing":
        del document["results"][0][name]
    (tmp_path / "bench.json").write_text(json.dumps(document))
    found = report(tmp_path / "bench.json")
    assert found.code == InputError.exit_code
    assert f"{name} is" in found.json["error"]["message"]
    document["results"] = [record | {"bits_per_weight": None} for record in document["results"]]
    if value != "x":
        (tmp_path / "bench.json").write_text(json.dumps(document))
        assert report(tmp_path / "bench.json").code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": {"cpu": "x", "versions": 5}}, "machine.versions is 5; an object is needed"),
        ({"machine": {"cpu": "x", "memory_bytes": 10**400}}, "machine.memory_bytes is 1000"),
    ],
)
def test_odd_machines(report: Dejavu, results: Path, tmp_path: Path, change: Any, message: str) -> None:
    document = json.loads((results / "eval.json").read_text()) | change
    document.pop("versions", None)
    (tmp_path / "eval.json").write_text(json.dumps(document))
    assert message in report(tmp_path / "eval.json").json["error"]["message"]


def test_perplexities_that_cannot_be_stay_off_the_frontier(
    report: Dejavu, results: Path, tmp_path: Path
) -> None:
    document = json.loads((results / "eval.json").read_text())
    document["runs"][0]["texts"]["text.txt"]["metrics"]["perplexity"]["value"] = -1
    (tmp_path / "eval.json").write_text(json.dumps(document))
    found = report(tmp_path / "eval.json", "bench.json")
    assert (found.code, groups(found)) == (0, BOTH[1:])


@pytest.mark.parametrize("name", ["layers", "neurons", "heads", "tokens", "command"])
def test_odd_evidence(report: Dejavu, results: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(results / "plan", tmp_path / "odd")
    document = json.loads((tmp_path / "odd" / "plan.json").read_text())
    document["evidence"][name] = [7] if name == "command" else 7
    (tmp_path / "odd" / "plan.json").write_text(json.dumps(document))
    found = report(tmp_path / "odd")
    if name == "command":
        assert found.code == 0
    else:
        assert found.code == InputError.exit_code
        assert f"evidence: {name} is 7" in found.json["error"]["message"]


def test_odd_stages_of_an_adaptation(report: Dejavu, tmp_path: Path) -> None:
    document = {
        "command": "dejavu adapt model",
        "base": "model",
        "density": 0.25,
        "tokens": 8000,
        "seconds": 480.0,
        "curve": [{"tokens": 1000, "seconds": 60.0, "density": 0.25, "ratio": 1.5}],
        "native": {"tokens": 500, "base_codec": "bf16", "ppl_ratio": 1.07, "density": 0.251},
        "options": {"codec": "int8"},
        "stages": 5,
    }
    (tmp_path / "adaptation.json").write_text(json.dumps(document))
    assert "stages is 5; a list is needed" in report(tmp_path).json["error"]["message"]


def test_plans_of_people_who_are_not_here(report: Dejavu, results: Path, tmp_path: Path) -> None:
    """A path in a result is of the machine that made it."""
    for name in ("~nosuch/plan", "a\0b/plan"):
        bench = timed(results, tmp_path / "bench.json", plan=name, plan_sha256=None)
        assert groups(report("eval.json", bench, "plan")) == BOTH


def test_in_a_working_folder_that_is_gone(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    capsys.readouterr()
    assert run(["report", str(results / "eval.json"), "-o", str(tmp_path / "page.html")]) == 0
    assert run(["report", str(results / "eval.json")]) == CacheError.exit_code
    assert "cannot write report.html" in capsys.readouterr().err
