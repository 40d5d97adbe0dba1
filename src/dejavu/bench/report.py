"""Results of a benchmark as rows, JSON, CSV or Markdown."""

from __future__ import annotations

import csv
import io
import json
import time
from typing import TYPE_CHECKING, Literal

from dejavu.units import human_bytes, human_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dejavu.bench.runner import Result, Subject

Format = Literal["table", "json", "csv", "md"]
FORMATS: tuple[Format, ...] = ("table", "json", "csv", "md")

SCHEMA = 1
"""Version of the layout of `to_json`."""
HEADERS = (
    "model",
    "params",
    "size",
    "codec",
    "kv",
    "plan",
    "threads",
    "test",
    "tokens/s",
    "ms/token",
    "GB/s",
    "% of read bandwidth",
)
_NUMERIC = frozenset({"params", "size", "threads", "tokens/s", "ms/token", "GB/s", "% of read bandwidth"})


def rows(subject: Subject, results: Sequence[Result]) -> list[tuple[str, ...]]:
    """One row of text per result, columns as in `HEADERS`."""
    name = f"{subject.name} (synthetic weights)" if subject.synthetic else subject.name
    out: list[tuple[str, ...]] = []
    for result in results:
        setting = result.case.setting
        rate, share = result.bytes_per_s, result.bandwidth_share
        out.append(
            (
                name,
                human_count(subject.parameters),
                human_bytes(subject.size(setting.codec)),
                setting.codec,
                setting.kv_dtype,
                setting.plan,
                str(setting.threads),
                result.case.test.label,
                f"{result.median:.2f} ± {result.spread:.2f}",
                f"{result.ms_per_token:.3f}",
                "" if rate is None else f"{rate / 1e9:.1f}",
                "" if share is None else f"{100 * share:.0f}",
            )
        )
    return out


def records(subject: Subject, results: Sequence[Result]) -> list[dict[str, object]]:
    """One flat JSON-able record per result: raw units, and the seconds of every repeat."""
    return [
        {
            "model": subject.name,
            "synthetic_weights": subject.synthetic,
            "parameters": subject.parameters,
            "size_bytes": subject.size(result.case.setting.codec),
            "codec": result.case.setting.codec,
            "kv_dtype": result.case.setting.kv_dtype,
            "plan": result.case.setting.plan,
            "threads": result.case.setting.threads,
            "test": result.case.test.label,
            "kind": result.case.test.kind,
            "tokens": result.case.test.tokens,
            "batch": result.case.test.batch,
            "depth": result.case.test.depth,
            "tokens_per_s": result.median,
            "tokens_per_s_spread": result.spread,
            "ms_per_token": result.ms_per_token,
            "touched_bytes_per_step": result.step_bytes,
            "bytes_per_s": result.bytes_per_s,
            "read_bandwidth_bytes_per_s": result.bandwidth,
            "seconds": list(result.seconds),
        }
        for result in results
    ]


def to_json(
    subject: Subject, results: Sequence[Result], machine: Mapping[str, object], *, command: str = ""
) -> str:
    """One object: what was measured, when, where and by which command; and the records."""
    document = {
        "schema": SCHEMA,
        "kind": "bench",
        "model": subject.name,
        "fingerprint": subject.fingerprint,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": command,
        "machine": dict(machine),
        "results": records(subject, results),
    }
    return json.dumps(document, indent=2)


def to_csv(subject: Subject, results: Sequence[Result]) -> str:
    """The records with a header line; the seconds of the repeats in one field, separated by spaces."""
    table = records(subject, results)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    for record, result in zip(table, results, strict=True):
        writer.writerow({**record, "seconds": " ".join(map(repr, result.seconds))})
    return out.getvalue()


def to_markdown(subject: Subject, results: Sequence[Result]) -> str:
    """A table of `rows`."""
    lines = [HEADERS, tuple("---:" if name in _NUMERIC else "---" for name in HEADERS)]
    lines += rows(subject, results)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def footnote(results: Sequence[Result]) -> str:
    """The measured read bandwidth that the last column refers to."""
    found = {
        result.case.setting.threads: result.bandwidth for result in results if result.bandwidth is not None
    }
    if not found:
        return "The read bandwidth was not measured."
    measured = ", ".join(f"{rate / 1e9:.1f} GB/s (threads: {threads})" for threads, rate in found.items())
    return f"Measured read bandwidth: {measured}."
