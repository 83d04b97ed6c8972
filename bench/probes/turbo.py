"""Turbo frequencies: faster, but by how much depends on heat and on the neighbours."""

from typing import Final

from tailcut.bench.probes import HIDDEN, Finding, Group, System

TITLE: Final = "turbo"
GROUP: Final[Group] = "processor"
MEASURES: Final = False
_CPU: Final = "sys/devices/system/cpu"
_ADVICE: Final = (
    "Leave it on to serve. To measure, either let blocks interleave (`tailcut bench` does) or fix the clock: "
    "`echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo`, elsewhere `echo 0` into cpufreq/boost."
)


def probe(system: System) -> Finding:
    off, boost = system.number(f"{_CPU}/intel_pstate/no_turbo"), system.number(f"{_CPU}/cpufreq/boost")
    if off is None and boost is None:
        return Finding("unknown", HIDDEN, "", {"turbo": None})
    on = off == 0 if off is not None else boost == 1
    if on:
        return Finding("hint", "on: the clock moves with heat and with what other cores do", _ADVICE, {"turbo": True})
    return Finding("good", "off: the clock is steady", "", {"turbo": False})
