"""Facts about the machine, as far as Linux tells them: processor, caches, memory, versions."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PACKAGES = ("dejavu-llm", "numpy", "tokenizers", "huggingface-hub", "jinja2", "gguf", "typer", "rich")


@dataclass(frozen=True)
class CacheLevel:
    """One data cache as a core sees it."""

    name: str
    """L1d, L2, L3."""
    bytes: int
    shared_by: int
    """Number of logical CPUs that share it."""


@dataclass(frozen=True)
class Machine:
    """What `describe_machine` found; 0 or empty where the system does not say."""

    cpu: str
    architecture: str
    system: str
    logical_cpus: int
    """Logical CPUs that this process may run on."""
    physical_cores: int
    """Cores behind them, as far as a quota reaches: hyper-threads of a core count once."""
    caches: tuple[CacheLevel, ...]
    memory_bytes: int
    memory_available_bytes: int


def describe_machine(root: Path = Path("/")) -> Machine:
    """Look at ``/proc`` and ``/sys`` below `root`."""
    cpus = usable_cpus()
    info = root / "proc/cpuinfo"
    memory = _fields(root / "proc/meminfo")
    return Machine(
        cpu=_cpu_name(_fields(info)) or platform.processor(),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        logical_cpus=len(cpus),
        physical_cores=physical_cores(cpus, root),
        caches=_caches(min(cpus), root),
        memory_bytes=_kib(memory.get("MemTotal")),
        memory_available_bytes=_kib(memory.get("MemAvailable")),
    )


def usable_cpus() -> set[int]:
    """Logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(cpus: set[int], root: Path = Path("/")) -> int:
    """Number of cores behind logical CPUs `cpus` (of CPUs, where the system does not say), as far as a quota reaches.

    A container's quota (``docker --cpus=2``) counts in whole cores, at least one: more threads would wait for each other.
    """
    cores = set()
    for cpu in cpus:
        siblings = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings or str(cpu))
    return max(1, int(min([len(cores), *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """CPUs' worth of time that each control group (cgroup, v1 and v2) of this process may use; none: no limit."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top.joinpath(*(part for part in path.split("/") if part != ".."))
        for folder in (group, *group.parents):  # those outside a container are not seen
            if controllers:
                limit = [_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
            else:
                limit = _read(folder / "cpu.max").split()
            if len(limit) == 2 and all(value.isdecimal() and int(value) for value in limit):
                yield int(limit[0]) / int(limit[1])
            if folder == top:
                break


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter; those not installed are left out."""
    found = {name: version for name in _PACKAGES if (version := package_version(name))}
    return {"python": platform.python_version(), **found}


def package_version(name: str = "dejavu-llm") -> str | None:
    """Of an installed package; None: it is not installed."""
    import importlib.metadata  # slow, and who counts cores here has no use for it

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def peak_rss_bytes(root: Path = Path("/")) -> int:
    """Largest resident memory that this process had, mapped files included; 0 where the system does not say."""
    return _kib(_fields(root / "proc/self/status").get("VmHWM"))


def folder_bytes(path: Path) -> int:
    """Bytes of all regular files below `path`; 0 if there is no such folder."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += (Path(folder) / name).lstat().st_size
            except OSError:  # a file that went away meanwhile
                continue
    return total


def _cpu_name(info: dict[str, str]) -> str:
    return info.get("model name") or info.get("Model") or info.get("Hardware") or ""


def _caches(cpu: int, root: Path) -> tuple[CacheLevel, ...]:
    levels = []
    for folder in sorted((root / f"sys/devices/system/cpu/cpu{cpu}/cache").glob("index*")):
        kind = _read(folder / "type")
        if kind in ("Data", "Unified"):
            levels.append(
                CacheLevel(
                    name=f"L{_read(folder / 'level')}{'d' if kind == 'Data' else ''}",
                    bytes=_kib(_read(folder / "size")),
                    shared_by=_count_cpus(_read(folder / "shared_cpu_list")),
                )
            )
    return tuple(levels)


def _fields(path: Path) -> dict[str, str]:
    """The first value of each "name: value" line."""
    found: dict[str, str] = {}
    for line in _read(path).splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _kib(text: str | None) -> int:
    """Bytes of a size such as 123 kB, 48K or 260M; 0 for anything else."""
    text = (text or "").removesuffix("kB").strip()
    factor = 1 << 10
    for suffix, size in (("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)):
        if text.endswith(suffix):
            text, factor = text[:-1], size
    return int(text) * factor if text.isdecimal() else 0


def _count_cpus(text: str) -> int:
    """Length of a list such as 0-3,8 (5)."""
    count = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count
