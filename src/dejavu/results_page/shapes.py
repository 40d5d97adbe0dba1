"""What the parts of a result file have to be that the page reads."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from dejavu.errors import InputError


@dataclass(frozen=True)
class Maybe:
    """Null, or something of a shape."""

    shape: Any


NUMBER = (int, float)
MAYBE_NUMBER = (int, float, type(None))
MAYBE_TEXT = (str, type(None))

_NAMES = {str: "text", int: "a number", bool: "true or false", dict: "an object", list: "a list"}
_ESTIMATE = {"value": MAYBE_NUMBER, "stderr": MAYBE_NUMBER}
_METRICS = {"*": _ESTIMATE}
_VERSIONS = {"*": str}
_MACHINE = {
    "cpu": str,
    "logical_cpus?": int,
    "physical_cores?": int,
    "memory_bytes?": int,
    "versions?": Maybe(_VERSIONS),
}
_MADE = {"model": str, "date": str, "machine": _MACHINE, "versions?": Maybe(_VERSIONS), "command?": str}

EVAL = _MADE | {
    "fingerprint": str,
    "kv_dtype": str,
    "runs": [
        {
            "name": str,
            "codec": str,
            "plan": MAYBE_TEXT,
            "plan_sha256": MAYBE_TEXT,
            "tasks": {"*": {"items": int, "skipped": [dict], "metrics": _METRICS}},
            "texts": {"*": {"base": MAYBE_TEXT, "tokens": int, "metrics": _METRICS}},
            "average?": _ESTIMATE,
            "difference?": {"tasks": {"*": _METRICS}, "average?": _ESTIMATE},
        }
    ],
}
BENCH = _MADE | {
    "fingerprint": MAYBE_TEXT,
    "results": [
        {
            "synthetic_weights": bool,
            "codec": str,
            "kv_dtype": str,
            "plan": str,
            "plan_sha256?": MAYBE_TEXT,
            "threads": int,
            "test": str,
            "kind": str,
            "batch": int,
            "depth": int,
            "tokens_per_s": NUMBER,
            "tokens_per_s_spread": NUMBER,
            "ms_per_token": NUMBER,
            "touched_bytes_per_step": MAYBE_NUMBER,
            "bytes_per_s": MAYBE_NUMBER,
            "read_bandwidth_bytes_per_s": MAYBE_NUMBER,
            "bandwidth_share?": MAYBE_NUMBER,
            "ttft_s?": MAYBE_NUMBER,
            "itl_p95_s?": MAYBE_NUMBER,
            "density?": MAYBE_NUMBER,
            "packed_bytes?": MAYBE_NUMBER,
            "predictor_bytes?": MAYBE_NUMBER,
            "bits_per_weight?": MAYBE_NUMBER,
            "ratio_to_f32?": MAYBE_NUMBER,
            "parts?": Maybe({"*": {"ms": NUMBER, "bandwidth_ms": MAYBE_NUMBER}}),
        }
    ],
    "peers?": [
        {
            "peer": str,
            "variant": MAYBE_TEXT,
            "version": MAYBE_TEXT,
            "status": str,
            "reason": MAYBE_TEXT,
            "type": MAYBE_TEXT,
            "codec": str,
            "threads": int,
            "test": str,
            "ratios": {"*": NUMBER},
            "tokens_per_s?": NUMBER,
            "tokens_per_s_spread?": NUMBER,
            "peak_rss_bytes?": MAYBE_NUMBER,
        }
    ],
}
MEMORY = {"packed_bytes": NUMBER, "predictor_bytes": NUMBER, "ratio_to_f32": NUMBER}
"""Of a result whose bits per weight are given."""
ANALYSIS = _MADE | {
    "fingerprint": str,
    "text": str,
    "codec": str,
    "tokens": {"evaluation": int},
    "verdict": [str],
    "quality": {
        "points": [
            {
                "part": str,
                "selector": str,
                "density": NUMBER,
                "neurons": NUMBER,
                "heads": NUMBER,
                "ppl_ratio": NUMBER,
            }
        ]
    },
}
ADAPTATION = {
    "command": str,
    "base": str,
    "density": NUMBER,
    "tokens": int,
    "seconds": NUMBER,
    "curve": [{"tokens": int, "seconds": NUMBER, "density": NUMBER, "ratio": NUMBER}],
    "native": {"tokens": int, "base_codec": str, "ppl_ratio": NUMBER, "density": NUMBER},
    "options": {"codec": str},
    "stages?": list,
}
_ROW = {"name": str, "date?": str, "cpu?": str, "command?": str, "fingerprint?": str}
QUALITY_ROW = _ROW | {"kind": str, "text": str, "tokens": int, "ppl_ratio": NUMBER}
SPEED_ROW = _ROW | {"tokens_per_s": NUMBER, "spread": NUMBER}
STAGES = {
    "schema": int,
    "base": str,
    "fingerprint": str,
    "command": str,
    "tokens": int,
    "machine": {"cpu": str},
    "rows": [
        {
            "kind": str,
            "target": NUMBER,
            "ppl_ratio": NUMBER,
            "tokens_per_s": NUMBER,
            "spread": NUMBER,
            "model": Maybe(str),
        }
    ],
}
"""What `dejavu adapt --frontier` measured in the end."""
_FIGURES = {"density?": MAYBE_NUMBER, "recall?": MAYBE_NUMBER}
EVIDENCE = {
    "neurons?": dict,
    "heads?": dict,
    "tokens?": dict,
    "layers?": [{"neurons?": _FIGURES, "heads?": _FIGURES}],
}
"""Of a plan; what else there is of figures may be anything."""


def check(value: Any, shape: Any, where: str) -> None:
    """Hold `value` against `shape`.

    Args:
        value: from JSON.
        shape: a type or several; `Maybe`; a list of one shape, for any number of values of it; or a dict of shapes by
            name, where "*" stands for every name and "?" at its end marks a name that may be missing. Other names are
            left alone.
        where: the file, for errors.

    Raises:
        InputError: it is something else.
    """
    _check(value, shape, f"{where}:", "")


def _check(value: Any, shape: Any, where: str, at: str) -> None:
    if isinstance(shape, dict):
        _need(value, (dict,), "an object", where, at)
        for name, inner in shape.items():
            for key in value if name == "*" else [name.rstrip("?")]:
                place = f"{at}.{key}" if at else key
                if key in value:
                    _check(value[key], inner, where, place)
                elif not name.endswith("?"):
                    raise InputError(f"{where} {place} is missing")
    elif isinstance(shape, list):
        _need(value, (list,), "a list", where, at)
        for number, entry in enumerate(value):
            _check(entry, shape[0], where, f"{at}[{number}]")
    elif isinstance(shape, Maybe):
        if value is not None:
            _check(value, shape.shape, where, at)
    else:
        allowed = shape if isinstance(shape, tuple) else (shape,)
        if isinstance(value, bool) and bool not in allowed:
            allowed = ()  # Python takes true for a whole number
        elif isinstance(value, int) and abs(value) > sys.float_info.max:
            allowed = ()  # and reads whole ones that no float holds
        _need(value, allowed, _NAMES[shape[0] if isinstance(shape, tuple) else shape], where, at)


def _need(value: Any, allowed: tuple[type, ...], name: str, where: str, at: str) -> None:
    if not isinstance(value, allowed):
        raise InputError(f"{where} {at or 'it'} is {value!r:.60}; {name} is needed")
