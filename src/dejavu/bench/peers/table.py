"""Results of peers as a table and as records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dejavu.bench.details import Table
from dejavu.units import human_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dejavu.bench.peers.contest import PeerCase
    from dejavu.bench.results import Result


def peer_table(cases: Sequence[PeerCase], results: Sequence[Result]) -> Table:
    """One row per case; what was not measured says why in the last column, once for all tests of a setting."""
    headers = (
        "peer", "type", "codec", "threads", "test", "tokens/s", "step p50 ms", "p99", "memory", "our speed / its",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for case in cases:
        engine, setting, result = case.contestant.engine, case.contestant.setting, case.result
        name = " ".join(filter(None, (engine.name, case.contestant.variant)))
        start = (
            name,
            engine.types.get(setting.codec, ""),
            setting.codec,
            str(setting.threads),
            case.test.label,
        )
        if result is None:
            reason = ("", "", "", "", f"{case.status}: {case.reason}")
            row = (*start, *reason) if case.status == "failed" else (*start[:-1], "", *reason)
            rows += [row] if row not in rows else []
            continue
        steps = (result.step_quantile(q) for q in (0.5, 0.99))
        rows.append(
            (
                *start,
                f"{result.median:.2f} ± {result.spread:.2f}",
                *("" if step is None else f"{1e3 * step:.3f}" for step in steps),
                human_bytes(case.contestant.peak_rss),
                ", ".join(
                    f"{value:.2f}x" + ("" if plan == "off" else f" by {plan}")
                    for plan, value in ratios(case, results).items()
                ),
            )
        )
    versions = dict.fromkeys(filter(None, (case.contestant.version for case in cases)))
    title = "Peers, in the same rounds" + (f" ({'; '.join(versions)})" if versions else "")
    return Table(title, headers, rows)


def ratios(case: PeerCase, results: Sequence[Result]) -> dict[str, float]:
    """Our plan -> median over the rounds of the peer's time / ours, at the same test and setting."""
    wanted = case.contestant.setting
    found = {}
    for ours in results:
        setting = ours.case.setting
        same = (setting.codec, setting.kv_dtype, setting.threads) == (
            wanted.codec,
            wanted.kv_dtype,
            wanted.threads,
        )
        value = case.ratio(ours) if same and ours.case.test == case.test else None
        if value is not None:
            found[setting.plan] = value
    return found


def peer_records(cases: Sequence[PeerCase], results: Sequence[Result]) -> list[dict[str, object]]:
    """One JSON-able record per case, with the fields of ours where they apply."""
    return [_record(case, ratios(case, results)) for case in cases]


def _record(case: PeerCase, found: dict[str, float]) -> dict[str, object]:
    contestant, result = case.contestant, case.result
    setting = contestant.setting
    record: dict[str, object] = {
        "peer": contestant.engine.name,
        "variant": contestant.variant,
        "version": contestant.version,
        "status": case.status,
        "reason": case.reason,
        "fix": contestant.engine.pip if case.status == "missing" else None,
        "type": contestant.engine.types.get(setting.codec),
        "codec": setting.codec,
        "kv_dtype": setting.kv_dtype,
        "threads": setting.threads,
        "test": case.test.label,
        "kind": case.test.kind,
        "tokens": case.test.tokens,
        "batch": case.test.batch,
        "depth": case.test.depth,
        "peak_rss_bytes": contestant.peak_rss or None,
        "ratios": found,
    }
    if result is not None:
        record |= {
            "tokens_per_s": result.median,
            "tokens_per_s_spread": result.spread,
            "ms_per_token": result.ms_per_token,
            "seconds": list(result.seconds),
            "ttft_s": result.ttft,
            "itl_p50_s": result.step_quantile(0.5),
            "itl_p95_s": result.step_quantile(0.95),
            "itl_p99_s": result.step_quantile(0.99),
        }
    return record
