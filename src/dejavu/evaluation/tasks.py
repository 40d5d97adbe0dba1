"""Tasks in JSONL files: one item a line, UTF-8.

| line | kind | scored by |
|---|---|---|
| ``{"context", "choices", "gold"}`` | choice | which choice is the likeliest after the context |
| ``{"contexts", "continuation", "gold"}`` | choice | after which context the continuation is the likeliest |
| ``{"context", "target"}`` | cloze | whether greedy decoding gives the target, and its log-likelihood |
| ``{"prompt", "target"}`` | generation | the text that is generated (optional ``"stop"``: strings that end it) |

`gold` counts from 0. Other fields are left alone. All lines of a file are of one kind.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dejavu.errors import InputError
from dejavu.models.store import expand_path
from dejavu.texts import LINES, lone_surrogate, numbered_lines, parse_object, read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

Kind = Literal["choice", "cloze", "generation"]

PAPER = ("cb", "copa", "hellaswag", "lambada", "openbookqa", "piqa", "rte", "winogrande")
"""The zero-shot tasks of the Deja Vu paper (its COPA, RTE and CB are those of SuperGLUE)."""


@dataclass(frozen=True)
class Item:
    """A line of a task file."""

    line: int
    """From 1."""
    pairs: tuple[tuple[str, str], ...]
    """Context and continuation: one per choice, or the only one."""
    gold: int = 0
    """The right pair."""
    stop: tuple[str, ...] = ()
    """Generation: strings that end the text."""


@dataclass(frozen=True)
class Task:
    """A task file."""

    name: str
    """Its file's name without ``.jsonl``."""
    kind: Kind
    items: tuple[Item, ...]
    fingerprint: str
    """SHA-256 of the file."""


def find_tasks(wanted: Iterable[str], folder: Path) -> list[Path]:
    """The files of tasks, in the order given and each once.

    Args:
        wanted: names of files in `folder` without ``.jsonl``, paths of ``.jsonl`` files, or "paper": the tasks of the
            Deja Vu paper.
        folder: where names are looked up.

    Raises:
        InputError: no such task.
    """
    names = [name for entry in wanted for name in (PAPER if entry == "paper" else (entry,))]
    return [_find(name, folder) for name in dict.fromkeys(names)]


def read_tasks(wanted: Iterable[str], folder: Path) -> list[Task]:
    """Read what `find_tasks` finds.

    Raises:
        InputError: no such task, two files of one name, or a line that is not an item of the file's kind (with the
            line's number).
    """
    tasks = [read_task(path) for path in find_tasks(wanted, folder)]
    if len({task.name for task in tasks}) < len(tasks):
        raise InputError("two task files have the same name", fix="rename one of them")
    return tasks


def read_task(path: Path) -> Task:
    """Read one file. Raises `InputError`: see `read_tasks`."""
    text = read_text(path)
    form, items = None, []
    for number, line in numbered_lines(text):
        value = parse_object(line, path, number)
        found = next((f for f in _FORMS if f.fields <= value.keys()), None)
        if found is None or form not in (None, found):
            forms = [form] if form else _FORMS
            wanted = " or ".join("{" + ", ".join(sorted(f.fields)) + "}" for f in forms)
            raise InputError(
                f"{path}:{number}: the fields are {', '.join(map(repr, value)) or 'missing'}; needed: {wanted}",
                fix="make all lines of the file items of one kind",
            )
        form = found
        try:
            items.append(form.parse(number, value))
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}", fix="correct or remove this line") from error
    if form is None:
        raise InputError(f"{path}: no items in it", fix="pass a file with one JSON object on each line")
    return Task(path.stem, form.kind, tuple(items), hashlib.sha256(text.encode()).hexdigest())


def _find(name: str, folder: Path) -> Path:
    if name.lower().endswith(LINES):
        return expand_path(name, "the task file")
    path = folder / f"{name}.jsonl"
    if "/" in name or not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.jsonl"))) or "none"
        raise InputError(
            f"no task {name!r} in {folder}; there are: {known}",
            fix="give the folder of the task files with --task-folder, or the path of a .jsonl file",
        )
    return path


@dataclass(frozen=True)
class _Form:
    """A way to write items."""

    kind: Kind
    fields: frozenset[str]
    parse: Callable[[int, dict[str, Any]], Item]


def _choices(line: int, value: dict[str, Any]) -> Item:
    context, choices = _text(value, "context"), _texts(value, "choices")
    return Item(line, tuple((context, choice) for choice in choices), _gold(value, len(choices)))


def _contexts(line: int, value: dict[str, Any]) -> Item:
    contexts, continuation = _texts(value, "contexts"), _text(value, "continuation")
    return Item(line, tuple((context, continuation) for context in contexts), _gold(value, len(contexts)))


def _cloze(line: int, value: dict[str, Any]) -> Item:
    return Item(line, ((_text(value, "context"), _text(value, "target")),))


def _generation(line: int, value: dict[str, Any]) -> Item:
    stop = value.get("stop", [])
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        raise ValueError(f'"stop" is {stop!r:.60}; a list of strings is needed')
    _check_unicode("stop", stop)
    return Item(line, ((_text(value, "prompt"), _text(value, "target")),), stop=tuple(stop))


_FORMS = (
    _Form("choice", frozenset({"context", "choices", "gold"}), _choices),
    _Form("choice", frozenset({"contexts", "continuation", "gold"}), _contexts),
    _Form("cloze", frozenset({"context", "target"}), _cloze),
    _Form("generation", frozenset({"prompt", "target"}), _generation),
)


def _text(value: dict[str, Any], field: str) -> str:
    text = value[field]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'"{field}" is {text!r:.60}; text is needed')
    _check_unicode(field, [text])
    return text


def _texts(value: dict[str, Any], field: str) -> list[str]:
    texts = value[field]
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(t, str) and t for t in texts):
        raise ValueError(f'"{field}" is {texts!r:.60}; a list of two or more texts is needed')
    _check_unicode(field, texts)
    return texts


def _check_unicode(field: str, texts: Iterable[str]) -> None:
    for half in filter(None, map(lone_surrogate, texts)):
        raise ValueError(f'"{field}": {half}')


def _gold(value: dict[str, Any], choices: int) -> int:
    gold = value["gold"]
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < choices:
        raise ValueError(f'"gold" is {gold!r:.60}; 0 to {choices - 1} is needed for {choices} choices')
    return gold
