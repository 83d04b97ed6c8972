"""Simultaneous multithreading: are some usable CPUs two halves of one core?"""

from typing import Final

from tailcut.bench.probes import HIDDEN, Finding, Group, System

TITLE: Final = "hyperthreads"
GROUP: Final[Group] = "processor"
MEASURES: Final = False


def probe(system: System) -> Finding:
    active = system.number("sys/devices/system/cpu/smt/active")
    shared = system.per_cpu("topology/thread_siblings_list")
    cores = len(set(shared.values())) if shared else None
    facts = {"active": None if active is None else bool(active), "cores": cores, "cpus": len(system.cpus)}
    if cores is not None and cores < len(system.cpus):
        advice = (
            f"Use one thread a core (--threads {cores}, the default): the second half of a core adds little to what memory "
            "limits, and whatever else runs there slows the first."
        )
        return Finding("hint", f"{len(system.cpus)} usable CPUs are {cores} cores", advice, facts)
    if active == 1:
        advice = "Siblings of these CPUs may belong to others, who then slow them: take whole cores for a measurement."
        return Finding("hint", "on, though each usable CPU is a core of its own", advice, facts)
    if active == 0 or cores is not None:
        return Finding("good", "each usable CPU is a core of its own", "", facts)
    return Finding("unknown", HIDDEN, "", facts)
