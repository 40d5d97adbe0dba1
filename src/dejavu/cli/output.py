"""What the command prints: JSON, errors, tables, progress. Results go to stdout, all else to stderr."""

from __future__ import annotations

import json
import math
import sys
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dejavu.errors import DejavuError
    from dejavu.outputs import Generation

UNEXPECTED_EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""


def print_json(value: Any) -> None:
    """Print `value` as one line of JSON; NaN and infinity, which JSON has not, become null."""
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False), flush=True)


def print_error(error: DejavuError, *, as_json: bool) -> None:
    """Print an error that dejavu raised on purpose."""
    message = str(error.args[0]) if error.args else type(error).__name__
    if as_json:
        print_json_error(type(error).__name__, message, error.fix)
        return
    say(f"error: {message}")
    if error.fix:
        say(f"  fix: {error.fix}")


def print_unexpected(error: Exception, *, as_json: bool) -> None:
    """Print an error that nobody foresaw, with its traceback."""
    say("".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip())
    say("This is a bug in dejavu. Please report it with the lines above and the output of `dejavu env`.")
    if as_json:
        print_json_error(type(error).__name__, str(error), "report it")


def print_json_error(kind: str, message: str, fix: str | None) -> None:
    """Print the one object that --json gives of an error."""
    print_json({"error": {"type": kind, "message": message, "fix": fix}})


def print_note(text: str) -> None:
    """Print a line that is not part of the result: dim, on stderr."""
    dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    say(f"{dim}{text}{plain}")


def say(text: str) -> None:
    """Print a line on stderr; where that is full it is lost: it was for people, and the result matters more."""
    try:
        print(text, file=sys.stderr)
    except BrokenPipeError:
        raise
    except OSError:
        pass


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell; columns of numbers to the right."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    right = [all(row[i][:1].isdecimal() for row in rows if row[i]) for i in range(len(headers))]
    for number, row in enumerate((headers, *rows)):
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def print_fields(fields: Mapping[str, str]) -> None:
    """Print "name  value" lines."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        print(f"{name.ljust(width)}  {value}".rstrip())


def describe_timings(result: Generation) -> str:
    """One line: tokens, time to first token, speed."""
    usage, timings = result.usage, result.timings
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    parts = [
        f"{usage.prompt_tokens} prompt tokens{cached}, {usage.completion_tokens} generated",
        f"first token after {1000 * timings.ttft_s:.0f} ms",
    ]
    if timings.decode_tokens:
        parts.append(f"{timings.tokens_per_s:.1f} tokens/s")
    return " · ".join(parts)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
