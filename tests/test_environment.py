"""Facts about a machine, from a made-up /proc and /sys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dejavu.environment import describe_machine, folder_bytes, physical_cores, usable_cpus, versions
from dejavu.units import human_bytes, human_count

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_describes_what_the_system_says(tmp_path: Path) -> None:
    write(
        tmp_path / "proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nmodel name\t: Other\n"
    )
    write(tmp_path / "proc/meminfo", "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\n")
    first = min(usable_cpus())
    for index, (kind, level, size) in enumerate(
        [("Data", 1, "48K"), ("Instruction", 1, "32K"), ("Unified", 2, "2048K"), ("Unified", 3, "1G")]
    ):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{first}/cache/index{index}"
        write(folder / "type", f"{kind}\n")
        write(folder / "level", f"{level}\n")
        write(folder / "size", f"{size}\n")
        write(folder / "shared_cpu_list", "0-3,8\n" if level == 3 else "0\n")
    machine = describe_machine(tmp_path)
    assert machine.cpu == "Some CPU @ 2 GHz"
    assert machine.memory_bytes == 2 << 20
    assert machine.memory_available_bytes == 1 << 20
    assert [(c.name, c.bytes, c.shared_by) for c in machine.caches] == [
        ("L1d", 48 << 10, 1),
        ("L2", 2 << 20, 1),
        ("L3", 1 << 30, 5),
    ]


def test_survives_a_system_that_says_nothing(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path)
    assert machine.caches == ()
    assert machine.memory_bytes == 0
    assert machine.physical_cores == machine.logical_cpus >= 1


def test_hyper_threads_count_once(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
    assert physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert physical_cores({0, 2}, tmp_path) == 1


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/", {"cpu.max": "max 100000\n"}, 8),
        ("0::/", {"cpu.max": "150000 100000\n"}, 1),
        ("0::/", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/", {"cpu.max": "9900000 100000\n"}, 8),
        ("0::/", {"cpu.max": "nonsense"}, 8),
        (
            "0::/a/b",
            {"cpu.max": "300000 100000", "a/cpu.max": "500000 100000", "a/b/cpu.max": "max 100000"},
            3,
        ),
        (
            "0::/a",
            {"a/cpu.max": "400000 100000", "b/cpu.max": "100000 100000", "../cpu.max": "100000 100000"},
            4,
        ),
        ("0::/../other", {"cpu.max": "200000 100000"}, 2),
        ("5:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ("5:cpuacct,cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
        ("6:cpuset:/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_quota_counts_in_whole_cores(line: str, files: dict[str, str], cores: int, tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", f"3:memory:/x\n{line}\n")
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup" / name, text)
    assert physical_cores(set(range(8)), tmp_path) == cores


def test_versions_and_folder(tmp_path: Path) -> None:
    assert versions()["numpy"]
    write(tmp_path / "a/b", "12345")
    write(tmp_path / "c", "1")
    assert folder_bytes(tmp_path) == 6
    assert folder_bytes(tmp_path / "none") == 0


def test_numbers_for_people() -> None:
    assert [human_count(n) for n in (0, 999, 1000, 134_515_008, 1_236_000_000, 10**15)] == [
        "0", "999", "1K", "134.5M", "1.236B", "1000T",
    ]  # fmt: skip
    assert [human_bytes(n) for n in (0, 1023, 1024, 98_362_432, 5 << 30, 1 << 60)] == [
        "0 B", "1023 B", "1.0 KiB", "93.8 MiB", "5.0 GiB", "1048576.0 TiB",
    ]  # fmt: skip
