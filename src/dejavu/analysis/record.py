"""Where an analysis was made, and writing it down."""

from __future__ import annotations

import dataclasses
import datetime
import json
from typing import TYPE_CHECKING, Any

from dejavu.analysis.report import render_report
from dejavu.environment import describe_machine, versions
from dejavu.errors import CacheError
from dejavu.models.store import atomic_write

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def describe_run(
    *, model: str, text: Path, codec: str, kv_dtype: str, executor: str, command: str = ""
) -> dict[str, Any]:
    """Facts for the document: what was asked for, the machine, the versions and the time (UTC)."""
    return {
        "model": model,
        "command": command,
        "text": text.name,
        "codec": codec,
        "kv_dtype": kv_dtype,
        "executor": executor,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": dataclasses.asdict(describe_machine()),
        "versions": versions(),
    }


def write_analysis(document: Mapping[str, Any], folder: Path) -> None:
    """Write ``analysis.json`` and ``report.html``, each whole or not at all.

    Raises:
        CacheError: the folder cannot be written, the disk is full, ...
    """
    files = {
        "analysis.json": json.dumps(document, indent=1, allow_nan=False) + "\n",
        "report.html": render_report(document),
    }
    try:
        for name, content in files.items():
            with atomic_write(folder / name) as stream:
                stream.write(content.encode())
    except CacheError as error:
        raise CacheError(str(error.args[0]), fix="give another folder with -o") from error
