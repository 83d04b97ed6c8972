"""Which CPUs this process may use: affinity, and a control group's quota of CPU time."""

import re
from typing import Final

from tailcut.bench.probes import Finding, Group, System

TITLE: Final = "CPUs to use"
GROUP: Final[Group] = "limits"
MEASURES: Final = False


def probe(system: System) -> Finding:
    usable, online = len(system.cpus), _count(system.text("sys/devices/system/cpu/online"))
    quota = cpu_quota(system)
    throttled = _throttled(system)
    facts = {"usable": usable, "online": online, "quota": quota, "throttled_periods": throttled}
    sentence = f"{usable} usable" + (f" of {online}" if online is not None else "")
    if quota is not None and quota < usable:
        threads = max(1, int(quota))
        advice = (
            f"The container may use {quota:g} CPUs' time: more threads are stopped in the middle of a step. "
            f"Use --threads {threads}, or raise the limit to whole CPUs."
        )
        return Finding("hint", f"{sentence}; limited to {quota:g} CPUs' time", advice, facts)
    if online is not None and usable < online:
        return Finding("good", f"{sentence}: an affinity mask or cpuset leaves the others out", "", facts)
    return Finding("good", sentence, "", facts)


def cpu_quota(system: System) -> float | None:
    """CPUs' worth of time that the control group allows; None without a limit."""
    text = system.cgroup("cpu.max", "cpu", "cpu.cfs_quota_us")
    words = (text or "").split()
    period = words[1] if len(words) == 2 else system.cgroup("cpu.max", "cpu", "cpu.cfs_period_us")
    if not words or not words[0].isdecimal() or not (period or "").isdecimal() or int(period or 0) == 0:
        return None  # "max", -1, or nothing
    return int(words[0]) / int(period or 1)


def _throttled(system: System) -> int | None:
    """Periods in which the quota stopped this group."""
    found = re.search(r"^nr_throttled (\d+)$", system.cgroup("cpu.stat", "cpu", "cpu.stat") or "", re.MULTILINE)
    return int(found[1]) if found else None


def _count(ranges: str | None) -> int | None:
    """CPUs in a list such as 0-3,8."""
    parts = re.findall(r"(\d+)(?:-(\d+))?", ranges or "")
    return sum(int(last or first) - int(first) + 1 for first, last in parts) if parts else None
