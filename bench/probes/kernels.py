"""Whether tailcut's kernels run here, and with which instruction set."""

from typing import Final

from tailcut.bench.probes import Facts, Finding, Group, System
from tailcut.kernels import library

TITLE: Final = "tailcut's kernels"
GROUP: Final[Group] = "running"
MEASURES: Final = False


def probe(system: System) -> Finding:
    reason = library.problem()
    if reason is not None:
        return Finding("blocked", "they cannot run", f"{reason[:1].upper()}{reason[1:]}.", {"available": False})
    best, runs = library.best_isa(), library.isas()
    facts: Facts = {"available": True, "isa": best, "isas": " ".join(runs)}
    sentence = f"the {best} kernels run (of {', '.join(runs)})"
    if best == "portable":
        advice = "No vector kernels run on this processor: sparse packages run, but hardly faster than dense ones."
        return Finding("hint", sentence, advice, facts)
    return Finding("good", sentence, "", facts)
