"""benchmarks/frontier.py: both sides run alike, and the picture says how."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import pytest

from dejavu.engine import NativeExecutor
from tiny_chat import build_tiny_chat


class Peer:
    """llama.cpp, as far as it is looked at here: what it was asked for."""

    asked: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        pass

    def call(self, name: str, **options: Any) -> float:
        self.asked.append((name, options))
        return 0.5


@pytest.mark.parametrize("threads", [1, 2])
def test_both_sides_have_the_threads_that_the_picture_names(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    frontier = importlib.import_module("frontier")
    monkeypatch.setattr(frontier, "LLAMA_CPP", SimpleNamespace(start=lambda python: Peer()))
    monkeypatch.setattr(frontier, "peer_file", lambda args, kind: tmp_path / kind)
    monkeypatch.setattr(Peer, "asked", [])
    ours, load = [], NativeExecutor.load

    def recorded(*args: Any, **options: Any) -> NativeExecutor:
        ours.append(options["threads"])
        return load(*args, **options)

    monkeypatch.setattr(NativeExecutor, "load", recorded)
    model, out, svg = str(build_tiny_chat(tmp_path / "model")), tmp_path / "out.jsonl", tmp_path / "out.svg"
    rows = [
        {"name": name, "kind": kind, "text": "t", "tokens": 9, "ppl_ratio": 1.01}
        for name, kind in (("llama.cpp F32", "llama.cpp"), ("int8", "dense"))
    ]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.txt").write_text("the cat sat on the mat " * 9)
    options = ["--model", model, "--text", str(tmp_path / "text.txt"), "--codecs", "int8", "--repeats", "1"]
    options += ["--threads", str(threads), "--out", str(out), "--svg", str(svg)]
    for part in ("speed", "plot"):
        monkeypatch.setattr(sys, "argv", ["frontier.py", part, *options])
        frontier.main()
    assert ours == [threads]
    theirs = [asked["threads"] for name, asked in Peer.asked if name == "load"]
    assert theirs == [threads] * len(frontier.PEER_TYPES[1:])
    assert f"{model}, {threads} thread{'s' * (threads > 1)}" in svg.read_text()
    assert "2 cores" not in svg.read_text()
