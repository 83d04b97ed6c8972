"""What others use of the machine while nothing is asked of it."""

import time
from typing import Final

from tailcut.bench.load import OthersLoad
from tailcut.bench.probes import Finding, Group, System

TITLE: Final = "load of others"
GROUP: Final[Group] = "quiet"
MEASURES: Final = True
_SECONDS: Final = 1.5
_MUCH: Final = 0.05  # of all CPUs


def probe(system: System) -> Finding:
    load = OthersLoad([])
    time.sleep(_SECONDS)
    share = load.share()
    stolen = _stolen(system)
    average = (system.text("proc/loadavg") or "").split()[:1]
    facts = {"share": share, "load_average": float(average[0]) if average else None, "stolen_since_boot": stolen}
    sentence = f"others use {share:.0%} of the CPUs" + (f", load average {average[0]}" if average else "")
    sentence += f"; {stolen:.1%} of the time since boot went to other virtual machines" if stolen else ""
    if share > _MUCH:
        advice = (
            "Stop what runs beside a measurement (`top` names it); a bench leaves blocks out in which others compute."
        )
        return Finding("hint", sentence, advice, facts)
    return Finding("good", sentence, "", facts)


def _stolen(system: System) -> float | None:
    """Share of all CPU time since boot in which the host ran somebody else."""
    words = (system.text("proc/stat") or "").split("\n")[0].split()[1:]
    if len(words) < 8 or not all(word.isdecimal() for word in words):
        return None
    return int(words[7]) / max(1, sum(map(int, words[:8])))
