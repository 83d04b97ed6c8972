"""Which engines can run here, and why the others cannot."""

from typing import Final

from tailcut.bench import engines
from tailcut.bench.probes import Finding, Group, System

TITLE: Final = "engines"
GROUP: Final[Group] = "running"
MEASURES: Final = False


def probe(system: System) -> Finding:
    reasons = {name: engines.load(name).available() for name in engines.names()}
    ready = [name for name, reason in reasons.items() if reason is None]
    sentence = f"{len(ready)} of {len(reasons)} can run: {', '.join(ready) or 'none'}"
    absent = [
        f"{', '.join(name for name in reasons if reasons[name] == reason)}: {reason}"
        for reason in dict.fromkeys(reasons.values())
        if reason is not None
    ]
    facts = {name: reason or "available" for name, reason in reasons.items()}
    return Finding("good" if ready else "hint", sentence, "; ".join(absent), facts)
