"""Results of a benchmark as rows, JSON, CSV or Markdown."""

from __future__ import annotations

import csv
import io
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from dejavu.bench.details import bits_per_weight, part_times
from dejavu.bench.peers.table import peer_records
from dejavu.environment import peak_rss_bytes
from dejavu.units import human_bytes, human_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dejavu.bench.details import Table
    from dejavu.bench.peers.contest import PeerCase
    from dejavu.bench.results import Result
    from dejavu.bench.runner import Subject

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
    """One JSON-able record per result: raw units, and the seconds of every repeat."""
    return [_record(subject, result) for result in results]


def _record(subject: Subject, result: Result) -> dict[str, object]:
    parts = part_times(result)
    bits = bits_per_weight(subject, result)
    return {
        "model": subject.name,
        "synthetic_weights": subject.synthetic,
        "parameters": subject.parameters,
        "size_bytes": subject.size(result.case.setting.codec),
        "codec": result.case.setting.codec,
        "kv_dtype": result.case.setting.kv_dtype,
        "plan": result.case.setting.plan,
        "plan_sha256": result.plan_sha256,
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
        "bandwidth_share": result.bandwidth_share,
        "seconds": list(result.seconds),
        "ttft_s": result.ttft,
        "itl_p50_s": result.step_quantile(0.5),
        "itl_p95_s": result.step_quantile(0.95),
        "itl_p99_s": result.step_quantile(0.99),
        "touched_bytes": result.touched,
        "density": result.density,
        "heads_density": result.heads_density,
        "recall": result.recall,
        "predictor_share": result.predictor_share,
        "packed_bytes": result.packed_bytes,
        "predictor_bytes": result.predictor_bytes,
        "bits_per_weight": bits,
        "ratio_to_f32": 32 / bits if bits else None,
        "parts": None if parts is None else {name: asdict(part) for name, part in parts.items()},
    }


def to_json(
    subject: Subject,
    results: Sequence[Result],
    machine: Mapping[str, object],
    *,
    command: str = "",
    peers: Sequence[PeerCase] = (),
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
        "peak_rss_bytes": peak_rss_bytes(),
        "results": records(subject, results),
        "peers": peer_records(peers, results),
    }
    return json.dumps(document, indent=2)


def to_csv(subject: Subject, results: Sequence[Result]) -> str:
    """The records with a header line.

    The seconds of the repeats stand in one field, separated by spaces; objects are JSON.
    """
    table = records(subject, results)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    for record, result in zip(table, results, strict=True):
        cells = {name: json.dumps(v) if isinstance(v, dict) else v for name, v in record.items()}
        writer.writerow({**cells, "seconds": " ".join(map(repr, result.seconds))})
    return out.getvalue()


def to_markdown(subject: Subject, results: Sequence[Result]) -> str:
    """A table of `rows`."""
    lines = [HEADERS, tuple("---:" if name in _NUMERIC else "---" for name in HEADERS)]
    lines += rows(subject, results)
    return _markdown(lines)


def table_to_markdown(table: Table) -> str:
    """A table under its title."""
    return f"{table.title}\n\n{_markdown([table.headers, ('---',) * len(table.headers), *table.rows])}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def footnote(results: Sequence[Result]) -> str:
    """The measured read bandwidth that columns refer to, and the memory of the process."""
    memory = f" Largest memory of this process, all settings together: {human_bytes(peak_rss_bytes())}."
    found = {
        result.case.setting.threads: result.bandwidth for result in results if result.bandwidth is not None
    }
    if not found:
        return "The read bandwidth was not measured." + memory
    measured = ", ".join(f"{rate / 1e9:.1f} GB/s (threads: {threads})" for threads, rate in found.items())
    return f"Measured read bandwidth: {measured}.{memory}"
