"""The clock that steps are timed with: what it counts, how fine it is, what a reading costs."""

import statistics
import time
from itertools import pairwise
from typing import Final

from tailcut.bench.probes import HIDDEN, Finding, Group, System

TITLE: Final = "clock"
GROUP: Final[Group] = "quiet"
MEASURES: Final = False
_READINGS: Final = 20_000
_GOOD: Final = ("tsc", "arch_sys_counter", "kvm-clock")  # read without entering the kernel
_SLOW_NS: Final = 2000.0


def probe(system: System) -> Finding:
    source = system.text("sys/devices/system/clocksource/clocksource0/current_clocksource")
    cost, finest = clock_cost_ns()
    facts = {"source": source, "cost_ns": cost, "finest_ns": finest}
    sentence = f"{source or HIDDEN}, {cost:.0f} ns a reading, steps of {finest:.0f} ns"
    if source is not None and source not in _GOOD:
        advice = "Readings enter the kernel; where the hardware allows it: boot with clocksource=tsc."
        return Finding("hint", sentence, advice, facts)
    if max(cost, finest) > _SLOW_NS:
        advice = (
            "Steps below a millisecond are not timed well with this clock: measure larger batches or another machine."
        )
        return Finding("hint", sentence, advice, facts)
    return Finding("good", sentence, "", facts)


def clock_cost_ns() -> tuple[float, float]:
    """Nanoseconds that a reading usually takes, and the smallest step between two that differ."""
    readings = [time.perf_counter_ns() for _ in range(_READINGS)]
    gaps = [later - earlier for earlier, later in pairwise(readings)]
    return statistics.median(gaps), float(min((gap for gap in gaps if gap), default=0))
