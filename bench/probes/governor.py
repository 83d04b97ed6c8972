"""The frequency governor: does a CPU that wakes up first run slowly?"""

from typing import Final

from tailcut.bench.probes import HIDDEN, Finding, Group, System

TITLE: Final = "frequency governor"
GROUP: Final[Group] = "processor"
MEASURES: Final = False
_ADVICE: Final = (
    "Set it for the time of a measurement: `sudo cpupower frequency-set -g performance`; otherwise short runs also measure "
    "how fast the clock rises."
)


def probe(system: System) -> Finding:
    found = sorted(set(system.per_cpu("cpufreq/scaling_governor").values()))
    preference = sorted(set(system.per_cpu("cpufreq/energy_performance_preference").values()))
    facts = {"governor": " ".join(found) or None, "preference": " ".join(preference) or None}
    if not found:
        return Finding("unknown", f"{HIDDEN}; usual on a virtual machine, whose host decides", "", facts)
    sentence = f"governor is {', '.join(found)}"
    sentence += f", preference {', '.join(preference)}" if preference else ""
    if found == ["performance"]:
        return Finding("good", sentence, "", facts)
    return Finding("hint", sentence, _ADVICE, facts)
