"""The adapter for lm-evaluation-harness: its scores are ours, item by item, on a local task."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu import LLM, SamplingParams
from dejavu.cli.app import run
from dejavu.errors import InputError
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan, Threshold
from eval_extra import eval_extra
from tiny_chat import build_tiny_chat

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

eval_extra("lm_eval")
pytestmark = pytest.mark.filterwarnings("default")  # those of lm_eval and what it imports

CONTEXT = 120
TASK = """
task: quiz_local
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{path}"}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_chat(tmp_path_factory.mktemp("tiny"), context=CONTEXT)


@pytest.fixture(scope="module")
def plan(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    model = open_model(tiny)
    folder = tmp_path_factory.mktemp("plan")
    fingerprint, layers = model.weights.fingerprint, model.config.n_layers
    AccessPlan.uniform(fingerprint, layers, neurons=Threshold(density=0.3)).save(folder)
    model.close()
    return str(folder)


@pytest.fixture(scope="module")
def lm(tiny: Path) -> Iterator[Any]:
    from dejavu.evaluation.harness import DejavuLM

    model = DejavuLM(str(tiny), codec="f32", kv_dtype="f32", cache=False, device="cpu", batch_size=1)
    yield model
    model.llm.close()


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)

    def words(n: int) -> str:
        return "".join(rng.choice(list("abcdefgh "), n)).strip() + "x"

    rows = [
        {
            "context": words(8),
            "choices": [f" {words(int(rng.integers(2, 9)))}" for _ in range(4)],
            "gold": i % 4,
        }
        for i in range(30)
    ]
    path = tmp_path / "quiz.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


@pytest.mark.parametrize("with_plan", [False, True])
def test_harness_and_own_scorer_agree_item_by_item(
    with_plan: bool,
    tiny: Path,
    plan: str,
    task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import dejavu.evaluation.harness  # noqa: F401

    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "quiz.yaml").write_text(TASK.format(path=task))
    chosen = plan if with_plan else "off"
    found = simple_evaluate(
        model="dejavu",
        model_args={"pretrained": str(tiny), "codec": "f32", "kv_dtype": "f32", "plan": chosen},
        tasks=["quiz_local"],
        task_manager=TaskManager(include_path=str(tmp_path / "yaml"), include_defaults=False),
        bootstrap_iters=0,
    )
    output = tmp_path / "own.json"
    args = [
        "--tasks",
        str(task),
        "--codec",
        "f32",
        "--kv",
        "f32",
        "--plan",
        chosen,
        "-o",
        str(output),
        "--json",
    ]
    capsys.readouterr()
    assert run(["eval", str(tiny), *args]) == 0
    own = json.loads(capsys.readouterr().out)["runs"][0]["tasks"]["quiz"]["metrics"]
    lines = [json.loads(line) for line in output.with_suffix(".items.jsonl").read_text().splitlines()]
    samples = sorted(found["samples"]["quiz_local"], key=lambda s: s["doc_id"])
    assert len(samples) == len(lines) == 30
    for sample, line in zip(samples, lines, strict=True):
        theirs = [(float(a), str(b) == "True") for a, b in sample["filtered_resps"]]
        assert [s[0] for s in line["scores"]] == pytest.approx([a for a, _ in theirs], abs=1e-4)
        assert [s[1] for s in line["scores"]] == [b for _, b in theirs]
    assert found["results"]["quiz_local"]["acc,none"] == pytest.approx(own["acc"]["value"])
    assert found["results"]["quiz_local"]["acc_norm,none"] == pytest.approx(own["acc_norm"]["value"])


def test_rolling_windows_add_up_to_direct_ones(lm: Any) -> None:
    """Windows of the whole context: the first begins with BOS, the last one's context reaches back."""
    short, long = "a short text", "word " * 50
    bos = lm.llm.tokenizer.bos_id
    expected = []
    for text in (short, long):
        tokens, total, done = lm.llm.tokenizer.encode(text, add_special=False), 0.0, 0
        while done < len(tokens):
            stop = min(done + CONTEXT, len(tokens))
            inputs = ([bos, *tokens])[max(0, stop - CONTEXT) : stop]
            cache = lm.llm.executor.new_cache()
            logits = lm.llm.executor.prefill(np.array(inputs, np.int32), cache, all_logits=True).astype(float)
            logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            total += sum(logs[i - stop, tokens[i]] for i in range(done, stop))
            done = stop
        expected.append(total)
    assert lm.loglikelihood_rolling([request(short), request(long)], disable_tqdm=True) == pytest.approx(
        expected, rel=1e-4
    )


def test_empty_contexts_and_long_ones(lm: Any, caplog: pytest.LogCaptureFixture) -> None:
    long = "x" * (CONTEXT + 30)
    found = lm.loglikelihood(
        [request("", "abc"), request("<|begin|>", "abc"), request(long, "ab"), request(long[30:], "ab")],
        disable_tqdm=True,
    )
    assert found[0] == pytest.approx(found[1])
    assert found[2] == pytest.approx(found[3])
    assert "do not fit" in caplog.text
    with pytest.raises(InputError, match="no tokens"):
        lm.loglikelihood([request("abc", "")], disable_tqdm=True)


def test_generation_is_that_of_generate(lm: Any) -> None:
    options = {"until": ["zz"], "max_gen_toks": 12, "do_sample": False}
    found = lm.generate_until([request("the sea", options), request("a", options)], disable_tqdm=True)
    params = SamplingParams(temperature=0, max_tokens=12, stop=["zz"])
    assert found == [lm.llm.generate(prompt, params).text for prompt in ("the sea", "a")]


@pytest.mark.parametrize("bos", [False, True])
def test_prompts_lose_their_beginning_where_text_has_no_room(
    bos: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in the harness's own models: what fits beside `max_gen_toks`, from the end."""
    from dejavu.evaluation.harness import DejavuLM

    folder = build_tiny_chat(tmp_path, context=CONTEXT)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": bos}))
    model = DejavuLM(str(folder), codec="f32", kv_dtype="f32", cache=False)
    prompt = "".join(np.random.default_rng(1).choice(list("abcdefgh"), CONTEXT + 30))
    room = CONTEXT - 12 - bos  # one token a character
    options, params = {"max_gen_toks": 12}, SamplingParams(temperature=0, max_tokens=12)
    requests = [request(text, options) for text in (prompt, prompt[-room - 1 :], prompt[-room:])]
    found = model.generate_until(requests, disable_tqdm=True)
    assert found == [model.llm.generate(prompt[-room:], params).text] * 3
    assert caplog.text.count("do not fit") == 2
    with pytest.raises(InputError, match="no room for a prompt"):
        model.generate_until([request(prompt, {"max_gen_toks": CONTEXT})], disable_tqdm=True)
    model.llm.close()


def test_the_cache_of_requests_tells_tokenizers_and_templates_apart(lm: Any, tmp_path: Path) -> None:
    from dejavu.evaluation.harness import DejavuLM

    names = [lm.tokenizer_name]
    for changes in ({}, {"add_bos_token": True}, {"chat_template": "{{ messages[0].content }}"}):
        folder = build_tiny_chat(tmp_path / str(len(names)), context=CONTEXT)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | changes))
        with LLM.from_pretrained(str(folder), codec="f32", plan="off", cache=False) as llm:
            names.append(DejavuLM(llm=llm).tokenizer_name)
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_a_templated_context_has_one_bos(tmp_path: Path) -> None:
    """What `--apply_chat_template` gives begins with the BOS that the tokenizer would add."""
    from dejavu.evaluation.harness import DejavuLM

    folder = build_tiny_chat(tmp_path, context=CONTEXT)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    model = DejavuLM(str(folder), codec="f32", kv_dtype="f32", cache=False)
    messages = [{"role": "user", "content": "hi"}]
    rendered = model.apply_chat_template(messages)
    bare = rendered.removeprefix("<|begin|>")
    found = model.loglikelihood([request(rendered, "abc"), request(bare, "abc")], disable_tqdm=True)
    assert found[0] == found[1]
    options = {"max_gen_toks": 12}
    texts = model.generate_until([request(rendered, options), request(bare, options)], disable_tqdm=True)
    assert texts == [model.llm.chat(messages, SamplingParams(temperature=0, max_tokens=12)).text] * 2
    model.llm.close()


def test_options_of_generation() -> None:
    from dejavu.evaluation.harness import sampling

    assert sampling({}) == SamplingParams(temperature=0, max_tokens=256)
    assert sampling({"until": "x", "max_new_tokens": 3, "temperature": 0.5}) == SamplingParams(
        temperature=0.5, max_tokens=3, stop=["x"]
    )
    assert sampling({"do_sample": False, "temperature": 0.5}).temperature == 0
    assert sampling({"do_sample": True, "top_p": 0.9}) == SamplingParams(
        temperature=1.0, top_p=0.9, max_tokens=256
    )
    with pytest.raises(InputError, match="num_beams"):
        sampling({"num_beams": 4})


def test_chat_template(lm: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert lm.apply_chat_template(messages) == "<|begin|>user: hi\nassistant: "
    assert lm.apply_chat_template(messages, add_generation_prompt=False) == "<|begin|>user: hi\n"
    assert "messages" in lm.chat_template(True)


def test_a_loaded_model_can_be_passed(tiny: Path) -> None:
    from dejavu.evaluation.harness import DejavuLM

    with LLM.from_pretrained(str(tiny), codec="f32", plan="off", cache=False) as llm:
        assert DejavuLM(llm=llm).llm is llm
