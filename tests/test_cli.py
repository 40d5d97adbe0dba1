"""The command: verbs, options, output, exit codes, Ctrl-C."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, get_args

import pytest

from dejavu.cli import options
from dejavu.cli.app import app, run
from dejavu.cli.chat import Session
from dejavu.cli.generate import parse_logit_bias
from dejavu.cli.output import print_json, print_table
from dejavu.cli.perplexity import PathName
from dejavu.codecs import CODECS
from dejavu.errors import CacheError, InputError, OutputError
from dejavu.evaluation.perplexity import ScoringPath
from dejavu.executor import KV_DTYPES
from dejavu.models.spec import ALIASES
from tiny_chat import build_tiny_chat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VERBS = (
    "generate",
    "chat",
    "pull",
    "list",
    "rm",
    "info",
    "env",
    "perplexity",
    "eval",
    "bench",
    "train",
    "analyze",
)
REFERENCE = ("--executor", "reference", "--codec", "f32", "--kv", "f32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_chat(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TERMINAL_WIDTH", "110")
    return tmp_path / "cache"


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def dejavu(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command in this process."""

    def call(*args: str) -> Result:
        capsys.readouterr()
        code = run([*args])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def start(*args: str, **more: Any) -> subprocess.Popen[str]:
    """Run the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dejavu.cli", *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        # A suite that was started in the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **more,
    )


# --- the group


def test_help_names_all_verbs(dejavu: Callable[..., Result]) -> None:
    result = dejavu("--help")
    assert result.code == 0
    assert all(f"\n  {verb} " in result.out for verb in VERBS)
    assert "--install-completion" in result.out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(dejavu: Callable[..., Result], verb: str) -> None:
    result = dejavu(verb, "--help")
    assert result.code == 0
    assert "--json" in result.out


def test_no_arguments_is_help(dejavu: Callable[..., Result]) -> None:
    result = dejavu()
    assert "Usage: dejavu" in result.out + result.err


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["--nonsense"],
        ["generate", "hi", "--plans", "off"],
        ["generate", "hi", "--codec", "int3"],
        ["generate"],
        ["info", "a", "b"],
        ["bench", "--output", "xml"],
        ["generate", "hi", "--threads", "0"],
        ["generate", "hi", "--logit-bias", "x"],
    ],
)
def test_wrong_usage_is_an_error(dejavu: Callable[..., Result], args: list[str]) -> None:
    result = dejavu(*args)
    assert result.code == 2
    assert "Error" in result.err
    assert result.out == ""
    told = dejavu(*args, "--json")
    assert told.code == 2
    assert told.err == ""
    assert set(told.json["error"]) == {"type", "message", "fix"}
    assert told.json["error"]["type"] == "UsageError"
    assert told.json["error"]["message"] in " ".join(result.err.split())
    verb = f"dejavu {args[0]}" if args[0] in VERBS else "dejavu"
    assert told.json["error"]["fix"] == f"see: {verb} --help"


def test_json_that_is_no_option_leaves_errors_as_they_are(dejavu: Callable[..., Result]) -> None:
    result = dejavu("generate", "--", "hi", "--json")
    assert result.code == 2
    assert "Error" in result.err
    assert result.out == ""


def test_version(dejavu: Callable[..., Result]) -> None:
    result = dejavu("--version")
    assert result.code == 0
    assert result.out.startswith("dejavu ")


def test_dejavu_errors_have_a_fix_and_their_exit_code(dejavu: Callable[..., Result]) -> None:
    result = dejavu("info", "./nowhere")
    assert result.code == 5
    assert result.out == ""
    assert result.err.startswith("error: no model './nowhere'")
    assert "\n  fix: " in result.err
    result = dejavu("info", "./nowhere", "--json")
    assert result.code == 5
    assert result.err == ""
    assert result.json["error"]["type"] == "SourceError"
    assert result.json["error"]["message"].startswith("no model './nowhere'")
    assert result.json["error"]["fix"].startswith("give")


def test_unexpected_errors_ask_for_a_report(
    dejavu: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("dejavu.models.store.list_models", broken)
    result = dejavu("list")
    assert result.code == 70
    assert "Traceback" in result.err
    assert "ZeroDivisionError: oops" in result.err
    assert "dejavu env" in result.err
    result = dejavu("list", "--json")
    assert result.code == 70
    assert result.json["error"]["type"] == "ZeroDivisionError"


def test_ctrl_c_is_130(dejavu: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dejavu.models.store.list_models", interrupted)
    assert dejavu("list").code == 130


def test_ctrl_c_while_it_imports_is_130_without_a_traceback() -> None:
    code = """
import sys
class Interrupted:
    def find_spec(self, name, *rest):
        if name == "dejavu.cli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from dejavu.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_warm_start_imports_nothing_heavy() -> None:
    """Help must not wait for what it does not use (its time is not tested: machines differ)."""
    code = (
        "import sys; from dejavu.cli.app import run; run(['--help']);"
        "print(sorted({'numpy', 'rich', 'tokenizers', 'huggingface_hub', 'jinja2', 'gguf', 'torch'}"
        " & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_choices_are_those_of_the_library() -> None:
    assert [c.value for c in options.CodecName] == ["auto", *CODECS]
    assert [kv.value for kv in options.KvName] == list(KV_DTYPES)
    assert [path.value for path in PathName] == list(get_args(ScoringPath))
    assert options.DEFAULT_MODEL in ALIASES


def test_completion_of_the_shell() -> None:
    environment = {
        **os.environ,
        "_DEJAVU_COMPLETE": "complete_bash",
        "COMP_WORDS": "dejavu gen",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'dejavu'; from dejavu.cli import main; main()"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["generate"]


# --- streams


def shell(command: str, tiny: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell, in which $D is the command."""
    options = ["-m", tiny, *REFERENCE, "-n", "2", "--raw"]
    line = f"D='{sys.executable} -m dejavu.cli'; G='{' '.join(options)}'; {command}"
    return subprocess.run(
        ["bash", "-c", line],
        env={**os.environ, "DEJAVU_CACHE": str(cache), **environment},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", ["--help", "list --json", "rm x --json", "generate Hi $G"])
def test_a_full_disk_behind_stdout(args: str, unbuffered: str, tiny: str, cache: Path) -> None:
    done = shell(f"$D {args} > /dev/full", tiny, cache, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == OutputError.exit_code
    assert done.stderr == (
        "error: cannot write the output: No space left on device\n"
        "  fix: free some space, or send it elsewhere\n"
    )
    done = shell(f"$D {args} > /dev/full 2> /dev/full", tiny, cache, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == OutputError.exit_code


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(unbuffered: str, tiny: str, cache: Path) -> None:
    for args in ("--help", "list --json", "rm x --json"):
        done = shell(f"(sleep 0.5; $D {args}; echo $? >&2) | true", tiny, cache, PYTHONUNBUFFERED=unbuffered)
        assert done.stderr == "1\n"


def test_a_full_stderr_takes_nothing_from_the_result(tiny: str, cache: Path) -> None:
    plain = shell("$D generate Hi $G", tiny, cache)
    for away in ("2> /dev/full", "2>&-"):
        done = shell(f"$D generate Hi $G {away}", tiny, cache)
        assert (done.returncode, done.stdout, done.stderr) == (0, plain.stdout, "")


def test_streams_that_are_closed(tiny: str, cache: Path) -> None:
    done = shell("$D generate - $G <&-", tiny, cache)
    assert (done.returncode, "Traceback" in done.stderr) == (InputError.exit_code, False)
    done = shell(f"$D chat {tiny} {' '.join(REFERENCE)} <&-", tiny, cache)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = shell("$D list --json <&- >&- 2>&-", tiny, cache)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_text_is_utf8_whatever_the_locale(environment: dict[str, str], tiny: str, cache: Path) -> None:
    done = shell("$D generate 日é $G --json --stop é", tiny, cache, **environment)
    assert json.loads(done.stdout)["prompt"] == "日é"


# --- output


@pytest.mark.parametrize(
    "args",
    [
        ("analyze", "./nowhere"),
        ("train", "./nowhere", "--density", "0.5"),
        ("train", "./nowhere", "--density", "0.5", "--selector", "low_rank"),
        ("plan", "logits", "off", "./nowhere"),
        ("adapt", "./nowhere", "--density", "0.5", "--tokens", "1000"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_looked_for(
    dejavu: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    if args[0] == "adapt":
        pytest.importorskip("torch")
    text = tmp_path / "t.txt"
    text.write_text("A paragraph.\n\n" * 2 + "x" * 5000 + "\n\n" + "y" * 5000, encoding="utf-8")

    def refused(output: Path) -> tuple[str, str]:
        error = dejavu(*args, "--text", str(text), "-o", str(output), "--json").json["error"]
        assert error["fix"]
        return error["type"], error["message"]

    assert refused(text) == ("InputError", f"{text} is not a folder")
    below = text / "a" / "b"
    assert refused(below) == ("CacheError", f"cannot write {below}: Not a directory")
    assert refused(tmp_path / "new")[0] == "SourceError"  # all that is left is the model
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]

    def forbidden(dir: Path) -> None:
        assert dir == tmp_path
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("dejavu.models.writing.tempfile.TemporaryFile", forbidden)
    assert refused(tmp_path / "new" / "one")[1].endswith("new/one: Permission denied")


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1.5, float("nan"), float("inf")], "b": ("é", None)})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": [1.5, None, None], "b": ["é", None]}
    assert "é" in out


def test_table_aligns_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "count"), [("a", "1"), ("long", ""), ("c", "1234567")])
    assert capsys.readouterr().out.splitlines() == [
        "name    count",
        "----  -------",
        "a           1",
        "long",
        "c     1234567",
    ]


def test_logit_bias() -> None:
    assert parse_logit_bias(["1=2.5", "3=-inf"]) == {1: 2.5, 3: -float("inf")}


# --- models on this machine


def test_env(dejavu: Callable[..., Result]) -> None:
    result = dejavu("env", "--json")
    assert result.code == 0
    assert result.json["isa"] in result.json["isas"]
    assert result.json["read_bandwidth"] > 0
    assert result.json["threads"] >= 1


def test_env_for_people(dejavu: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dejavu.inspection.read_bandwidth", lambda: lambda threads: 12.34e9)
    out = dejavu("env").out
    assert "12.3 GB/s" in out
    assert "instruction sets" in out


def test_env_without_the_core(dejavu: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    from dejavu.errors import DejavuError

    def missing() -> None:
        raise DejavuError("no core")

    monkeypatch.setattr("dejavu.inspection.load_core", missing)
    result = dejavu("env")
    assert result.code == 0
    assert "no compiled core" in result.out
    assert "not measured" in result.out


def test_env_refuses_an_unknown_isa(dejavu: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEJAVU_ISA", "mmx")
    assert dejavu("env").code == InputError.exit_code


def test_list_and_rm_of_nothing(dejavu: Callable[..., Result]) -> None:
    assert dejavu("list", "--json").json == {"models": [], "packed": []}
    assert "dejavu pull" in dejavu("list").err
    for name in ("smollm2", "nosuch", "./nowhere", "pypi:"):
        result = dejavu("rm", name, "--json")
        assert result.code == 5
        assert result.json["error"] == {
            "type": "SourceError",
            "message": f"{name!r} is not stored (stored: none)",
            "fix": "see: dejavu list",
        }


def test_list_and_rm(dejavu: Callable[..., Result], cache: Path) -> None:
    from dejavu.models.spec import PypiSpec
    from dejavu.models.store import packed_folder, write_record

    folder = cache / "models" / "pypi" / "some-model" / "1.0"
    folder.mkdir(parents=True)
    (folder / "a.gguf").write_bytes(b"x" * 2048)
    write_record(folder, PypiSpec("some-model", "1.0"), "a.gguf", ["a.gguf"])
    (listed,) = dejavu("list", "--json").json["models"]
    assert listed["model"] == "pypi:some-model==1.0"
    assert listed["bytes"] == 2048
    assert "2.0 KiB" in dejavu("list").out
    packed = packed_folder(folder / "a.gguf")
    packed.mkdir(parents=True)
    (packed / "int8-0.dejavu").write_bytes(b"x")
    (removed,) = dejavu("rm", "pypi:some-model", "--json").json["removed"]
    assert removed["path"] == str(folder / "a.gguf")
    assert not folder.exists()
    assert not packed.exists()


def test_packed_weights_of_a_local_model(dejavu: Callable[..., Result], tmp_path: Path) -> None:
    model = build_tiny_chat(tmp_path / "local")
    assert dejavu("generate", "Hi", "-m", str(model), "--codec", "int8", "-n", "2").code == 0
    (listed,) = dejavu("list", "--json").json["packed"]
    assert (listed["path"], listed["source_exists"]) == (str(model), True)
    assert listed["bytes"] > 10_000
    shutil.rmtree(model)
    assert re.search(rf"{model} +[\d.]+ KiB  is gone", dejavu("list").out)
    result = dejavu("rm", str(model), "--json").json
    assert (result["removed"], result["packed"][0]["path"]) == ([], str(model))
    assert dejavu("list", "--json").json["packed"] == []
    assert dejavu("rm", str(model)).code == 5


def test_pull_of_a_folder_without_a_model(dejavu: Callable[..., Result], tmp_path: Path) -> None:
    result = dejavu("pull", str(tmp_path), "--json")
    assert result.code == 5
    assert "holds no config.json" in result.json["error"]["message"]


@pytest.mark.parametrize("verb", [("info",), ("pull",), ("generate", "Hi", "-m")])
def test_a_model_that_may_not_be_read(
    dejavu: Callable[..., Result], tiny: str, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.is_file", forbidden)
    result = dejavu(*verb, tiny, "--json")
    assert result.code == 5
    assert result.json["error"]["message"] == f"cannot read {tiny}: Permission denied"


def test_pull_of_a_local_model(dejavu: Callable[..., Result], tiny: str) -> None:
    assert dejavu("pull", tiny).out.strip() == tiny
    assert dejavu("pull", tiny, "--json").json["path"] == tiny


def test_info(dejavu: Callable[..., Result], tiny: str) -> None:
    facts = dejavu("info", tiny, "--json").json
    assert facts["config"]["d_model"] == 32
    assert facts["parameters"] == sum(part["parameters"] for part in facts["parts"].values())
    assert facts["parts"]["mlp"]["bytes"]["f32"] >= 4 * facts["parts"]["mlp"]["parameters"]
    assert facts["kv_bytes_per_token"]["f16"] == 2 * 2 * 2 * 8 * 2
    assert facts["tokenizer"]["chat_template"] is True
    assert facts["source_types"] == {"F32": 20}
    assert facts["delta"] is None
    assert facts["plans"] == []
    text = dejavu("info", tiny).out
    assert "attention" in text
    assert "258 tokens" in text
    assert "--plan" not in text
    assert "delta" not in text


def test_info_without_a_tokenizer(dejavu: Callable[..., Result], tmp_path: Path) -> None:
    folder = build_tiny_chat(tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in dejavu("info", str(folder), "--json").json["tokenizer"]["error"]
    assert dejavu("info", str(folder)).code == 0


# --- generate


def test_generate_prints_text_on_stdout_and_timings_on_stderr(
    dejavu: Callable[..., Result], tiny: str
) -> None:
    result = dejavu("generate", "Hello", "-m", tiny, *REFERENCE, "-n", "8")
    assert result.code == 0
    assert "8 generated" in result.err
    assert "tokens/s" in result.err
    whole = dejavu("generate", "Hello", "-m", tiny, *REFERENCE, "-n", "8", "--no-stream", "-q")
    assert whole.out == result.out
    assert whole.err == ""


def test_generate_json(dejavu: Callable[..., Result], tiny: str) -> None:
    result = dejavu(
        "generate", "Hello", "-m", tiny, *REFERENCE, "-n", "4", "--json", "--n", "2", "--logprobs", "1",
        "--temperature", "1", "--seed", "3",
    ).json  # fmt: skip
    assert len(result["completions"]) == 2
    assert all(len(c["token_ids"]) == 4 == len(c["logprobs"]) for c in result["completions"])
    assert result["prompt"].endswith("user: Hello\nassistant: ")
    assert result["usage"]["completion_tokens"] == 8


def test_generate_raw_and_system(dejavu: Callable[..., Result], tiny: str) -> None:
    base = ("generate", "Hello", "-m", tiny, *REFERENCE, "-n", "2", "--json")
    assert dejavu(*base, "--raw").json["prompt"] == "Hello"
    assert "system: Be kind." in dejavu(*base, "--system", "Be kind.").json["prompt"]
    result = dejavu(*base, "--raw", "--system", "Be kind.")
    assert result.code == InputError.exit_code
    assert "chat template" in result.json["error"]["message"]


def test_generate_reads_stdin(
    dejavu: Callable[..., Result], tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("generate", "-", "-m", tiny, *REFERENCE, "-n", "2", "--json", "--raw")
    for given, prompt in ((b"from stdin\n", "from stdin"), ("zwölf\r\n\r\n".encode(), "zwölf\n")):
        # by a locale that is not UTF-8, and errors that pass anything
        stdin = io.TextIOWrapper(io.BytesIO(given), encoding="ascii", errors="surrogateescape")
        monkeypatch.setattr("sys.stdin", stdin)
        assert dejavu(*command).json["prompt"] == prompt
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9 au lait"), encoding="ascii", errors="surrogateescape")
    monkeypatch.setattr("sys.stdin", stdin)
    result = dejavu(*command)
    assert result.code == InputError.exit_code
    assert result.json["error"]["message"] == "stdin is not UTF-8 at byte 3"
    assert result.json["error"]["fix"]


def test_generate_stop_string(dejavu: Callable[..., Result], tiny: str) -> None:
    base = ("generate", "Hello", "-m", tiny, *REFERENCE, "-n", "40", "--json", "--logit-bias", "65=100")
    first = dejavu(*base).json["completions"][0]
    assert set(first["token_ids"]) == {65}
    letter = first["text"][0]
    stopped = dejavu(*base, "--stop", letter * 3).json["completions"][0]
    assert stopped["text"] == ""
    assert stopped["finish_reason"] == "stop"
    kept = dejavu(*base, "--stop", letter * 3, "--include-stop").json["completions"][0]
    assert kept["text"] == letter * 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--temperature", "-1"), "temperature"),
        (("--top-p", "2"), "top_p"),
        (("--n", "0"), "n is"),
        (("--context", "3"), "context"),
    ],
)
def test_generate_refuses_bad_values(
    dejavu: Callable[..., Result], tiny: str, args: tuple[str, ...], message: str
) -> None:
    result = dejavu("generate", "Hello", "-m", tiny, *REFERENCE, *args, "--json")
    assert result.code == InputError.exit_code
    assert message in result.json["error"]["message"]


def test_logprobs_are_for_json(dejavu: Callable[..., Result], tiny: str) -> None:
    result = dejavu("generate", "Hello", "-m", tiny, *REFERENCE, "-n", "2", "--logprobs", "1")
    assert result.code == InputError.exit_code
    assert "fix: add --json" in result.err


@pytest.mark.parametrize("verb", [("generate", "Hello"), ("chat",)])
def test_negative_max_tokens_say_that_0_is_allowed(
    dejavu: Callable[..., Result], verb: tuple[str, ...]
) -> None:
    result = dejavu(*verb, "--max-tokens", "-4", "--json")
    assert result.code == 2
    assert "x>=0" in result.json["error"]["message"]


def test_generate_refuses_an_empty_prompt_before_it_looks_for_the_model(
    dejavu: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", piped(b"\n"))
    for prompt in ("", "-"):
        result = dejavu("generate", prompt, "-m", "/nowhere")
        assert (result.code, "the prompt is empty" in result.err) == (InputError.exit_code, True)


def test_options_that_do_nothing_at_temperature_0(dejavu: Callable[..., Result], tiny: str) -> None:
    for given, names in (
        (("--top-p", "0.9"), "--top-p"),
        (("--top-k", "5", "--min-p", "0.1"), "--top-k and --min-p"),
    ):
        result = dejavu("generate", "Hello", "-m", "/nowhere", *given)
        assert result.code == InputError.exit_code
        assert f"{names} changes nothing at temperature 0" in result.err
        assert "--temperature" in result.err.partition("fix:")[2]
    base = ("generate", "Hello", "-m", tiny, *REFERENCE, "-n", "2", "--seed", "1")
    assert "--seed changes nothing" in dejavu(*base).err
    assert "--seed" not in dejavu(*base, "--temperature", "1", "--top-p", "0.9").err
    assert dejavu(*base, "-q").err == ""


def test_answers_that_are_cut_off(
    dejavu: Callable[..., Result], tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("generate", "Hello", "-m", tiny, *REFERENCE)
    for how in ("--stream", "--no-stream"):
        assert "cut off: no more than 3 tokens" in dejavu(*base, "-n", "3", how).err
        assert "fill the context of 40 tokens" in dejavu(*base, "-n", "0", "--context", "40", how).err
        assert (
            "cut off"
            not in dejavu(*base, "-n", "3", "--stop-token-id", "65", "--logit-bias", "65=100", how).err
        )
    several = dejavu(*base, "-n", "3", "--n", "2", "--temperature", "1", "--seed", "1")
    assert "cut off (0, 1): no more than 3 tokens" in several.err
    monkeypatch.setattr("sys.stdin", piped(b"Hi\n"))
    assert "cut off: no more than 3 tokens" in dejavu("chat", tiny, *REFERENCE, "-n", "3").err


def test_native_and_reference_say_the_same(dejavu: Callable[..., Result], tiny: str) -> None:
    base = (
        "generate",
        "Hello",
        "-m",
        tiny,
        "-n",
        "12",
        "--json",
        "--codec",
        "f32",
        "--kv",
        "f32",
        "--threads",
        "1",
    )
    native, reference = dejavu(*base).json, dejavu(*base, "--executor", "reference").json
    assert native["completions"] == reference["completions"]


def test_sigint_ends_generate_with_130(tiny: str) -> None:
    process = start("generate", "Hello", "-m", tiny, *REFERENCE, "-n", "0", "--raw")
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


# --- chat


class Scripted:
    """Stands in for an LLM: yields letters, and what else it is told to."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[list[dict[str, str]]] = []

    def conversation(self) -> object:
        return self

    def stream_chat(
        self, messages: list[dict[str, str]], params: object, *, conversation: object
    ) -> Iterator[Any]:
        from dejavu.outputs import StreamEvent

        assert conversation is self
        self.asked.append([dict(message) for message in messages])
        for piece in self.answers.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            yield StreamEvent(0, piece, (1,))


def talk(session: Session, *lines: str | BaseException) -> bool:
    script: list[Any] = list(lines)

    def read() -> str:
        line = script.pop(0)
        if isinstance(line, BaseException):
            raise line
        return str(line)

    going = True
    while script and going:
        going = session.turn(read)
    return going


def test_chat_keeps_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    llm: Any = Scripted(["He", "llo"], ["Fine"], ["New"])
    session = Session(llm, params=None, system="Be kind.")  # type: ignore[arg-type]
    assert talk(session, "Hi", "  ", "How?", "/reset", "Again")
    assert [[m["content"] for m in asked] for asked in llm.asked] == [
        ["Be kind.", "Hi"],
        ["Be kind.", "Hi", "Hello", "How?"],
        ["Be kind.", "Again"],
    ]
    assert "Hello\n" in capsys.readouterr().out


def test_chat_interrupted_keeps_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    llm: Any = Scripted(["Once", KeyboardInterrupt()], ["ok"])
    session = Session(llm, params=None)  # type: ignore[arg-type]
    assert talk(session, KeyboardInterrupt(), "Tell me", "Go on")
    assert [m["content"] for m in llm.asked[1]] == ["Tell me", "Once", "Go on"]
    assert "(stopped)" in capsys.readouterr().err


def test_chat_survives_errors(capsys: pytest.CaptureFixture[str]) -> None:
    llm: Any = Scripted([InputError("too long", fix="/reset")], ["ok"])
    session = Session(llm, params=None)  # type: ignore[arg-type]
    assert talk(session, "Long", "Short")
    assert [m["content"] for m in llm.asked[1]] == ["Short"]
    assert "too long" in capsys.readouterr().err


def test_chat_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llm: Any = Scripted(["Yes"])
    session = Session(llm, params=None)  # type: ignore[arg-type]
    file = tmp_path / "talk.json"
    assert talk(
        session, "/help", "/wrong", "/system Be brief.", "Hi", "/save ~nosuch/x", "/save a\0b", f"/save {file}",
        "/save", f"/save {tmp_path}", "/reset", f"/save {file}", f"/save {'a' * 300}",
    )  # fmt: skip
    roles = [message["role"] for message in json.loads(file.read_text(encoding="utf-8"))]
    assert roles == ["system", "user", "assistant"]
    err = capsys.readouterr().err
    assert "Unknown command /wrong" in err
    assert "Cannot write ~nosuch/x: the path '~nosuch/x': no home folder" in err
    assert "holds a NUL" in err
    assert f"Cannot write {tmp_path}: it is there already" in err
    assert f"Cannot write {file}: it is there already" in err
    assert f"Cannot write {'a' * 300}: File name too long" in err
    assert not talk(session, "/quit")
    assert not talk(session, EOFError())


def piped(text: bytes) -> io.TextIOWrapper:
    """A stdin that is no terminal, in a locale that is not UTF-8."""
    return io.TextIOWrapper(io.BytesIO(text), encoding="ascii")


def test_chat_json_lines(dejavu: Callable[..., Result], tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", piped("Hé\nAgain".encode()))
    result = dejavu("chat", "-m", tiny, *REFERENCE, "-n", "3", "--json", "--temperature", "0")
    assert result.code == 0
    first, second = (json.loads(line) for line in result.out.splitlines())
    assert second["prompt"].startswith(first["prompt"] + first["completions"][0]["text"])
    assert "Hé" in first["prompt"]
    assert second["usage"]["cached_tokens"] > 0


def test_chat_json_takes_no_line_for_a_command(
    dejavu: Callable[..., Result], tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", piped(f"/save {tmp_path / 'x'}\n\n/quit\n".encode()))
    result = dejavu("chat", "-m", tiny, *REFERENCE, "-n", "3", "--json", "--temperature", "0")
    first, blank, last = (json.loads(line) for line in result.out.splitlines())
    assert (result.code, result.err) == (0, "")
    assert not (tmp_path / "x").exists()
    assert (blank["error"]["type"], blank["error"]["message"]) == ("InputError", "the line is empty")
    assert f"user: /save {tmp_path / 'x'}\n" in first["prompt"]
    assert last["prompt"].endswith("user: /quit\nassistant: ")


def test_an_error_ends_a_chat_that_nobody_types(
    dejavu: Callable[..., Result], tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = piped(b"Hi\nMore\nAnd more\n")
    monkeypatch.setattr("sys.stdin", lines)
    result = dejavu("chat", tiny, *REFERENCE, "--context", "40")
    assert "cut off: prompt and answer fill the context of 40 tokens" in result.err
    assert result.code == InputError.exit_code
    assert "leave out the oldest (dejavu chat: /reset begins anew; with --json, start it again)" in result.err
    assert lines.buffer.read() == b"And more\n"


def test_chat_of_what_cannot_be_read(
    dejavu: Callable[..., Result], tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", piped(b"\xff\n"))
    result = dejavu("chat", tiny, *REFERENCE, "-n", "3")
    assert (result.code, "stdin is not UTF-8" in result.err) == (InputError.exit_code, True)
    monkeypatch.setattr("sys.stdin", piped(b"\xff\nHi\n"))
    result = dejavu("chat", tiny, *REFERENCE, "-n", "3", "--json")
    first, second = (json.loads(line) for line in result.out.splitlines())
    assert (result.code, first["error"]["type"], "Hi" in second["prompt"]) == (0, "InputError", True)
    result = dejavu("chat", tiny, "-m", "another")
    assert (result.code, "given twice" in result.err) == (InputError.exit_code, True)


def test_sigint_stops_the_answer_and_not_the_chat(tiny: str) -> None:
    process = start("chat", tiny, *REFERENCE, "--temperature", "0", "-q")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("Hi\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)  # the second line must come after the first answer was stopped
    _, err = process.communicate("/help\n", timeout=60)
    assert process.returncode == 0
    assert "(stopped)" in err
    assert "/reset" in err
    assert "Traceback" not in err


def test_chat_without_a_template(dejavu: Callable[..., Result], tmp_path: Path, monkeypatch: Any) -> None:
    folder = build_tiny_chat(tmp_path / "bare")
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    lines = piped(b"Hi\n")
    monkeypatch.setattr("sys.stdin", lines)
    result = dejavu("chat", str(folder), *REFERENCE, "-n", "3")
    assert result.code == InputError.exit_code
    assert f"dejavu generate PROMPT -m {folder}" in result.err
    assert lines.buffer.read() == b"Hi\n"  # none was taken
    result = dejavu("generate", "Hi", "--chat", "-m", str(folder), *REFERENCE)
    assert (result.code, "dejavu generate --raw" in result.err) == (InputError.exit_code, True)


# --- perplexity and bench


def test_perplexity(dejavu: Callable[..., Result], tiny: str, tmp_path: Path) -> None:
    text = tmp_path / "t.jsonl"
    text.write_text('{"text": "A text of some length."}\n{"text": "Another."}\n', encoding="utf-8")
    base = ("perplexity", tiny, "--text", str(text), *REFERENCE, "--window", "8")
    blocks, steps = dejavu(*base, "--json").json, dejavu(*base, "--path", "decode", "--json").json
    assert [d["tokens"] for d in blocks["documents"]] == [21, 7]
    assert blocks["perplexity"] == pytest.approx(steps["perplexity"], rel=1e-5)
    assert dejavu(*base, "--limit", "10", "--json").json["tokens"] == 10
    shown = dejavu(*base)
    assert shown.out == f"perplexity {blocks['perplexity']:.4f}\n"
    assert "28 tokens of 2 documents scored by prefill" in shown.err
    assert "codec f32; no plan" in shown.err


def test_perplexity_of_several_texts(dejavu: Callable[..., Result], tiny: str, tmp_path: Path) -> None:
    base = ("perplexity", tiny, *REFERENCE, "--window", "8")
    alone, paths = {}, []
    for name, content in (("a.txt", "A text of some length."), ("b.txt", "Another one, not that short.")):
        (tmp_path / name).write_text(content, encoding="utf-8")
        paths += ["--text", str(tmp_path / name)]
        alone[name] = dejavu(*base, "--text", str(tmp_path / name), "--json").json
        assert alone[name]["texts"][0]["perplexity"] == alone[name]["perplexity"]
    together = dejavu(*base, *paths, "--json").json
    assert [entry["name"] for entry in together["texts"]] == ["a.txt", "b.txt"]
    for entry in together["texts"]:
        assert entry["perplexity"] == alone[entry["name"]]["perplexity"]
        assert entry["tokens"] == alone[entry["name"]]["tokens"]
    assert "perplexity" not in together
    shown = dejavu(*base, *paths)
    for name, found in alone.items():
        assert any(
            line.split()[:3] == [name, f"{found['perplexity']:.4f}", str(found["tokens"])]
            for line in shown.out.splitlines()
        )
    result = dejavu(*base, *paths, *paths[:2], "--json")
    assert result.code == InputError.exit_code
    assert "same name" in result.json["error"]["message"]


def test_perplexity_says_the_codec_that_auto_chose(
    dejavu: Callable[..., Result], tiny: str, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("A text of some length.", encoding="utf-8")
    base = ("perplexity", tiny, "--text", str(tmp_path / "t.txt"))
    assert dejavu(*base, "--json").json["codec"] == "bf16"
    assert dejavu(*base, "--executor", "reference", "--json").json["codec"] == "f32"
    assert "codec bf16; no plan" in dejavu(*base).err


def test_perplexity_by_a_plan_that_is_not_there(
    dejavu: Callable[..., Result], tiny: str, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("A text of some length.", encoding="utf-8")
    base = ("perplexity", tiny, "--text", str(tmp_path / "t.txt"), *REFERENCE, "--path", "masked", "--json")
    for more in ((), ("--plan", "off")):
        result = dejavu(*base, *more)
        assert result.code == InputError.exit_code
        assert "--plan PLAN" in result.json["error"]["fix"]


def test_perplexity_of_a_missing_file(dejavu: Callable[..., Result], tiny: str) -> None:
    assert dejavu("perplexity", tiny, "--text", "nowhere.txt").code == InputError.exit_code


def test_bench(dejavu: Callable[..., Result], tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dejavu.bench.suite.read_bandwidth", lambda: lambda threads: 1e9)
    base = ("bench", tiny, "-p", "16", "-n", "4,8", "-r", "2", "-t", "1", "--codec", "int8,int4")
    results = dejavu(*base, "--json").json["results"]
    assert [(r["codec"], r["test"]) for r in results] == [
        (codec, test) for codec in ("int8", "int4") for test in ("pp16", "tg4", "tg8")
    ]
    assert all(len(r["seconds"]) == 2 for r in results)
    assert all(r["read_bandwidth_bytes_per_s"] == pytest.approx(1e9) for r in results)
    assert all(r["itl_p99_s"] for r in results if r["kind"] == "tg")
    assert all((r["bandwidth_share"] is None) == (r["kind"] == "pp") for r in results)
    shown = dejavu(*base, "--parts").out
    assert all(text in shown for text in ("tg8", "Latency", "Memory", "Where a step's time goes", "waiting"))
    assert dejavu(*base, "-o", "md").out.startswith("| model |")
    assert dejavu(*base, "-o", "csv").out.startswith("model,")


@pytest.mark.parametrize(
    "args",
    [
        ("{tiny}", "--shape", "opt-1.3b"),
        ("--shape", "opt-1.3b", "--text", "a.txt"),
        ("--shape", "gpt-5"),
        ("{tiny}", "--codec", "int3"),
        ("{tiny}", "-p", "0", "-n", "0"),
        ("{tiny}", "-r", "0"),
        ("{tiny}", "-d", "9999"),
    ],
)
def test_bench_refuses(dejavu: Callable[..., Result], tiny: str, args: tuple[str, ...]) -> None:
    result = dejavu("bench", *(tiny if arg == "{tiny}" else arg for arg in args), "--json")
    assert result.code == InputError.exit_code
    assert result.json["error"]["fix"]


def test_a_read_only_cache_is_an_error(dejavu: Callable[..., Result], tiny: str, cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_bytes(b"a file where the folder should be")
    result = dejavu("generate", "Hi", "-m", tiny, "--codec", "int8", "-n", "2", "--json")
    assert result.code == CacheError.exit_code
    assert "DEJAVU_CACHE" in result.json["error"]["fix"]


def test_app_is_what_the_entry_point_runs() -> None:
    assert app.info.name == "dejavu"
