"""Memory that is free, for the machine and for the control group."""

import re
from typing import Final

from tailcut.bench.probes import HIDDEN, Finding, Group, System

TITLE: Final = "memory"
GROUP: Final[Group] = "memory"
MEASURES: Final = False
_LITTLE: Final = 2e9  # bytes: a 135M-parameter pair in float32 with what its workers need


def probe(system: System) -> Finding:
    total, free, swapped = (_of(system, name) for name in ("MemTotal", "MemAvailable", "Swap"))
    limit = memory_limit(system)
    facts = {"total_bytes": total, "available_bytes": free, "limit_bytes": limit, "swapped_bytes": swapped}
    if total is None or free is None:
        return Finding("unknown", HIDDEN, "", facts)
    sentence = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
    room = free
    if limit is not None and limit < total:
        sentence += f"; this container may use {limit / 1e9:.1f} GB"
        room = min(free, limit)
    if swapped:
        advice = "Some memory is swapped out: free some before measuring, a page that comes back costs milliseconds."
        return Finding("hint", f"{sentence}; {swapped / 1e9:.1f} GB are swapped out", advice, facts)
    if room < _LITTLE:
        advice = "Free some: dense and sparse are open side by side while they are compared."
        return Finding("hint", sentence, advice, facts)
    return Finding("good", sentence, "", facts)


def memory_limit(system: System) -> int | None:
    """Bytes that the control group may use; None without a limit."""
    text = system.cgroup("memory.max", "memory", "memory.limit_in_bytes")
    return int(text) if text is not None and text.isdecimal() else None


def _of(system: System, name: str) -> int | None:
    """Bytes of a line of /proc/meminfo; "Swap" is what is in use of it."""
    found = {
        key: 1024 * int(value)
        for key, value in re.findall(r"^(\w+):\s+(\d+) kB", system.text("proc/meminfo") or "", re.MULTILINE)
    }
    if name == "Swap":
        return found["SwapTotal"] - found["SwapFree"] if {"SwapTotal", "SwapFree"} <= found.keys() else None
    return found.get(name)
