"""Numbers for people."""

from __future__ import annotations


def human_count(count: int) -> str:
    """134515008 -> "134.5M"."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= unit:
            return f"{count / unit:.4g}{name}"
    return str(count)


def human_bytes(size: float) -> str:
    """98362432 -> "93.8 MiB"."""
    for name in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {name}" if name == "B" else f"{size:.1f} {name}"
        size /= 1024
    return f"{size:.1f} TiB"
