"""dejavu env."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dejavu.cli import options
from dejavu.cli.output import print_fields, print_json

if TYPE_CHECKING:
    from dejavu.inspection import Environment


def env(json: options.Json = False) -> None:
    """Show facts about this machine.

    The processor, the instruction set in use, the measured memory bandwidth, versions, the cache folder.
    """
    import dataclasses

    from dejavu.inspection import describe_environment

    facts = describe_environment()
    if json:
        print_json({**dataclasses.asdict(facts), "cache_folder": str(facts.cache_folder)})
    else:
        print_fields(_fields(facts))


def _fields(facts: Environment) -> dict[str, str]:
    from dejavu.units import human_bytes

    machine = facts.machine
    caches = ", ".join(
        f"{cache.name} {human_bytes(cache.bytes)}"
        + (f" (shared by {cache.shared_by})" if cache.shared_by > 1 else "")
        for cache in machine.caches
    )
    return {
        "dejavu": facts.versions.get("dejavu-llm", "not installed"),
        "processor": machine.cpu or machine.architecture,
        "system": f"{machine.system} {machine.architecture}",
        "instruction sets": f"{', '.join(facts.isas)} (used: {facts.isa})"
        if facts.isas
        else "no compiled core",
        "cores": f"{machine.physical_cores} physical, {machine.logical_cpus} logical",
        "threads": f"{facts.threads} by default",
        "caches": caches or "unknown",
        "memory": f"{human_bytes(machine.memory_bytes)}, "
        f"{human_bytes(machine.memory_available_bytes)} available",
        "read bandwidth": (
            f"{facts.read_bandwidth / 1e9:.1f} GB/s, sequential, measured now"
            if facts.read_bandwidth
            else "not measured"
        ),
        "cache folder": f"{facts.cache_folder} ({human_bytes(facts.cache_bytes)})",
        "versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
    }
