"""Task files: what is read, and that every malformed line is named. Encoding of pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu.errors import InputError
from dejavu.evaluation.encoding import Prompt, encode_item, encode_pair
from dejavu.evaluation.suite import Share, prepare_task
from dejavu.evaluation.tasks import PAPER, Item, Task, read_task, read_tasks
from dejavu.tokenizer import Tokenizer
from scripted import TOKENIZER
from tiny_tokenizer import byte_level_metadata

CHOICE = {"context": "Sky is", "choices": [" blue", " a dog"], "gold": 0}
CONTEXTS = {"contexts": ["Ann", "Bob"], "continuation": " ran", "gold": 1}
CLOZE = {"context": "It is", "target": " so"}
GENERATION = {"prompt": "Q: 1+1\nA:", "target": " 2", "stop": ["\n"]}


def write(path: Path, *lines: object) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "kind", "item"),
    [
        (CHOICE, "choice", Item(1, (("Sky is", " blue"), ("Sky is", " a dog")))),
        (CONTEXTS, "choice", Item(1, (("Ann", " ran"), ("Bob", " ran")), 1)),
        (CLOZE, "cloze", Item(1, (("It is", " so"),))),
        (GENERATION, "generation", Item(1, (("Q: 1+1\nA:", " 2"),), stop=("\n",))),
    ],
)
def test_each_form(tmp_path: Path, line: dict[str, Any], kind: str, item: Item) -> None:
    task = read_task(write(tmp_path / "t.jsonl", line | {"id": 7}, "", line))
    assert (task.name, task.kind, task.items[0]) == ("t", kind, item)
    assert [i.line for i in task.items] == [1, 3]
    changed = read_task(write(tmp_path / "t.jsonl", line | {"id": 8}))
    assert changed.fingerprint != task.fingerprint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ({"question": "?"}, "the fields are 'question'; needed: {choices, context, gold}"),
        (CLOZE, "the fields are 'context', 'target'; needed: {choices, context, gold}"),
        (CHOICE | {"gold": 2}, '"gold" is 2; 0 to 1 is needed for 2 choices'),
        (CHOICE | {"gold": -1}, '"gold" is -1'),
        (CHOICE | {"gold": True}, '"gold" is True'),
        (CHOICE | {"gold": "0"}, "\"gold\" is '0'"),
        (CHOICE | {"choices": [" a"]}, "two or more"),
        (CHOICE | {"choices": [" a", ""]}, "two or more"),
        (CHOICE | {"choices": " ab"}, "two or more"),
        (CHOICE | {"context": 3}, '"context" is 3'),
        (CHOICE | {"context": " "}, '"context" is'),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "t.jsonl", CHOICE, "", line)
    with pytest.raises(InputError) as caught:
        read_task(path)
    assert f"{path}:3: " in str(caught.value)
    assert message in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (CHOICE | {"context": "a\ud800"}, "context"),
        (CHOICE | {"choices": ["a", "b\ud800"]}, "choices"),
        (CLOZE | {"target": "a\ud800"}, "target"),
        (GENERATION | {"stop": ["a", "\ud800"]}, "stop"),
    ],
)
def test_text_that_is_no_unicode(tmp_path: Path, line: dict[str, Any], field: str) -> None:
    path = write(tmp_path / "t.jsonl", "", line)
    with pytest.raises(InputError, match=rf't\.jsonl:2: "{field}": .*\\ud800'):
        read_task(path)
    read_task(write(path, CLOZE | {"note": "\ud800"}))  # a field that nothing reads


def test_a_byte_order_mark_is_no_part_of_a_task(tmp_path: Path) -> None:
    plain = read_task(write(tmp_path / "t.jsonl", CHOICE, CHOICE))
    marked = tmp_path / "T.JSONL"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "t.jsonl").read_bytes().replace(b"\n", b"\r\n"))
    [found] = read_tasks([str(marked)], tmp_path)
    assert (found.items, found.fingerprint) == (plain.items, plain.fingerprint)


def test_malformed_stop(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r't\.jsonl:1: "stop" is'):
        read_task(write(tmp_path / "t.jsonl", GENERATION | {"stop": "x"}))


def test_names_paths_and_the_papers_tasks(tmp_path: Path) -> None:
    for name in PAPER:
        write(tmp_path / f"{name}.jsonl", CHOICE)
    assert [t.name for t in read_tasks(["cb", "paper"], tmp_path)] == list(PAPER)
    other = write(tmp_path / "other.jsonl", CLOZE)
    assert [t.kind for t in read_tasks([str(other)], Path("nowhere"))] == ["cloze"]
    (tmp_path / "more").mkdir()
    twin = write(tmp_path / "more" / "other.jsonl", CLOZE)
    with pytest.raises(InputError, match="same name"):
        read_tasks([str(other), str(twin)], tmp_path)
    with pytest.raises(
        InputError, match=r"no task 'nonsense' in .*; there are: cb, copa, .*\nfix: .*--task-folder"
    ):
        read_tasks(["nonsense"], tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read_tasks([str(tmp_path / "missing.jsonl")], tmp_path)
    with pytest.raises(InputError, match="no items"):
        read_task(write(tmp_path / "empty.jsonl", ""))


@given(
    st.text("the catsonm .\n", min_size=1, max_size=20), st.text("the catsonm .\n", min_size=1, max_size=20)
)
def test_pairs_are_split_as_by_the_harness(context: str, continuation: str) -> None:
    spaces = len(context) - len(context.rstrip())
    moved = context[len(context) - spaces :] + continuation
    bare = context[: len(context) - spaces]
    whole = TOKENIZER.encode(bare + moved, add_special=False)
    first = TOKENIZER.encode(bare, add_special=False)
    start, target = encode_pair(TOKENIZER, context, continuation)
    assert start == (tuple(first) or (TOKENIZER.bos_id,))
    assert target == tuple(whole[len(first) :])


def test_a_context_that_begins_with_bos_gets_no_second_one() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level_metadata(add_bos_token=True))
    for context in ("<s>the cat", "the cat"):  # a rendered chat, and a text
        start, target = encode_pair(tokenizer, context, " sat")
        assert (start, target) == encode_pair(tokenizer, "the cat", " sat")
        assert start.count(1) == 1


def test_pairs_of_one_context_share_it() -> None:
    pairs = [("the cat", " sat"), ("the cat", " was flat"), ("the hat", " sat")]
    prompts = encode_item(TOKENIZER, pairs, 100)
    assert isinstance(prompts, list)
    assert [len(p.targets) for p in prompts] == [2, 1]
    assert [encode_pair(TOKENIZER, *pair) for pair in pairs] == [
        (p.context, target) for p in prompts for target in p.targets
    ]
    assert Prompt((1, 2, 3), ((4,), (5, 6, 7))).tokens == 5


def test_what_does_not_fit_is_skipped_and_counted() -> None:
    short = Item(1, (("the", " cat"), ("the", " mat")))
    long = Item(2, (("the", " cat"), ("the", " cat" * 20)))
    task = Task("t", "choice", (short, long, Item(3, short.pairs)), "f" * 64)
    exact = len(TOKENIZER.encode("the" + " cat" * 20, add_special=False)) - 1  # the last token is not fed
    assert prepare_task(TOKENIZER, task, exact).skipped == ()
    prepared = prepare_task(TOKENIZER, task, exact - 1)
    assert prepared.skipped == ((2, "too long"),)
    assert [item.line for item in prepared.items] == [1, 3]


def test_a_prompt_fits_as_it_is_fed_whatever_the_reference_is() -> None:
    """White space at its end is fed to the model too; the reference text is not."""
    prompt = "the cat \n\n"
    task = Task("g", "generation", (Item(1, ((prompt, " sat" * 50),)),), "f" * 64)
    room = len(TOKENIZER.encode_prompt(prompt)) + 10
    assert room > len(TOKENIZER.encode_prompt(prompt.rstrip())) + 10
    assert prepare_task(TOKENIZER, task, room, max_tokens=10).skipped == ()
    assert prepare_task(TOKENIZER, task, room, max_tokens=11).skipped == ((1, "too long"),)
    empty = Task("g", "generation", (Item(1, (("", " sat"),)),), "f" * 64)
    assert prepare_task(TOKENIZER, empty, room).skipped == ((1, "no tokens"),)


@given(st.integers(0, 40), st.one_of(st.none(), st.integers(1, 50)), st.integers(1, 6))
def test_shards_divide_the_items(count: int, limit: int | None, of: int) -> None:
    parts = [Share(limit, part, of).numbers(count) for part in range(1, of + 1)]
    assert sorted(i for part in parts for i in part) == list(Share(limit).numbers(count))


def test_bad_shards() -> None:
    for part, of in ((0, 2), (3, 2)):
        with pytest.raises(InputError, match="shard"):
            Share(None, part, of)
