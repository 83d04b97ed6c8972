"""The measured read bandwidth: decoding cannot be faster than bytes over this."""

from typing import Final

from tailcut.bench.bandwidth import measure_bandwidth
from tailcut.bench.machine import physical_cpus
from tailcut.bench.probes import Finding, Group, System

TITLE: Final = "read bandwidth"
GROUP: Final[Group] = "memory"
MEASURES: Final = True
_LITTLE: Final = 5.0  # GB/s: less than one channel of DDR3


def probe(system: System) -> Finding:
    points = measure_bandwidth(len(physical_cpus()), passes=2)
    best = points[-1]
    facts = {f"gb_per_s_{point.threads}": point.best_gb_per_s for point in points}
    shown = ", ".join(f"{point.best_gb_per_s:.1f} GB/s with {point.threads}" for point in points)
    sentence = f"{shown} thread{'s' if best.threads > 1 else ''}: at most {best.best_gb_per_s:.1f} tokens/s from 1 GB of weights"
    if best.best_gb_per_s < _LITTLE:
        advice = "That is little for any machine of today: others may be reading at the same time, try again when it is quiet."
        return Finding("hint", sentence, advice, facts)
    return Finding("good", sentence, "", facts)
