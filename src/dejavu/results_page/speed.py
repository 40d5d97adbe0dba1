"""What `dejavu bench` found: speeds, memory, and peers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu.report import Table
from dejavu.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Record = Mapping[str, Any]


def speed_table(records: Sequence[Record]) -> Table:
    """A row for each result."""
    rows = [
        [
            weights(record),
            record["kv_dtype"],
            str(record["threads"]),
            record["test"],
            f"{record['tokens_per_s']:.1f} ± {record['tokens_per_s_spread']:.1f}",
            f"{record['ms_per_token']:.3g}",
            _milliseconds(record.get("ttft_s")),
            _milliseconds(record.get("itl_p95_s")),
            f"{record['bytes_per_s'] / 1e9:.1f}" if record["bytes_per_s"] else "",
            _bandwidth_share(record),
        ]
        for record in records
    ]
    headers = ["weights", "cache", "threads", "test", "tokens/s", "ms/token"]
    headers += ["first token ms", "step p95 ms", "GB/s", "% of bandwidth"]
    caption = "Medians ± half the distance between the quartiles. pp: prompt processing, tg: token generation"
    return Table(caption, headers, rows)


def memory_table(records: Sequence[Record]) -> Table | None:
    """What the weights of each setting take, and the share of the neurons that ran; None: not measured."""
    seen: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.get("bits_per_weight"):
            density = record.get("density")
            key = (record["codec"], record.get("plan_sha256") or record["plan"])
            old = seen.get(key)
            seen[key] = [
                weights(record),
                human_bytes(record["packed_bytes"]),
                human_bytes(record["predictor_bytes"]),
                f"{record['bits_per_weight']:.2f}",
                f"{record['ratio_to_f32']:.2f}",
                f"{100 * density:.1f}" if density is not None else old[-1] if old else "",
            ]
    headers = ["weights", "packed", "predictors", "bits/weight", "f32 / this", "neurons %"]
    return Table("Memory, and what ran of the neurons", headers, [*seen.values()]) if seen else None


def peer_table(peers: Sequence[Record]) -> Table:
    """Other engines in the same rounds; what was not measured says why, once for all tests of a setting."""
    rows: list[list[str]] = []
    for record in peers:
        name = " ".join(filter(None, (record["peer"], record["variant"])))
        start = [name, record["type"] or record["codec"], str(record["threads"])]
        if "tokens_per_s" in record:
            ratios = ", ".join(
                f"{value:.2f}" + ("" if plan == "off" else f" by {Path(plan).name}")
                for plan, value in record["ratios"].items()
            )
            speed = f"{record['tokens_per_s']:.1f} ± {record.get('tokens_per_s_spread', 0.0):.1f}"
            memory = human_bytes(record["peak_rss_bytes"]) if record.get("peak_rss_bytes") else ""
            rows.append([*start, record["test"], speed, memory, ratios])
        else:
            row = [*start, "", "", "", ": ".join(filter(None, (record["status"], record["reason"])))]
            rows += [row] if row not in rows else []
    versions = ", ".join(dict.fromkeys(r["version"] for r in peers if r["version"]))
    headers = ["peer", "weights", "threads", "test", "tokens/s", "memory", "our speed / its"]
    caption = "Other engines, timed in the same rounds" + (f": {versions}" if versions else "")
    return Table(caption, headers, rows)


def bandwidths(records: Sequence[Record]) -> str:
    """The read bandwidths that shares refer to, in words; empty if none was measured."""
    found = {
        r["threads"]: r["read_bandwidth_bytes_per_s"] for r in records if r["read_bandwidth_bytes_per_s"]
    }
    return ", ".join(
        f"{rate / 1e9:.1f} GB/s with {n} thread{'s' * (n > 1)}" for n, rate in sorted(found.items())
    )


def weights(record: Record) -> str:
    """Codec, and plan by the last part of its path."""
    return (
        str(record["codec"])
        if record["plan"] == "off"
        else f"{record['codec']}, plan {Path(record['plan']).name}"
    )


def setting_name(record: Record) -> str:
    """What tells results of one file apart, but for the cache's precision."""
    threads = record["threads"]
    return f"{weights(record)}, {record['test']}, {threads} thread{'s' * (threads > 1)}"


def floor_ms(record: Record) -> float | None:
    """Milliseconds that reading the bytes of a step takes at the measured bandwidth; None: not known."""
    size, rate = record["touched_bytes_per_step"], record["read_bandwidth_bytes_per_s"]
    return 1000 * size / rate if size and rate else None


def _bandwidth_share(record: Record) -> str:
    share = record.get("bandwidth_share")
    return f"{100 * share:.0f}" if share else ""


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g}"
