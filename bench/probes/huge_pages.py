"""Transparent huge pages: the kernels ask for them, so that walking over weights misses the TLB less."""

import re
from typing import Final

from tailcut.bench.probes import HIDDEN, Finding, Group, System

TITLE: Final = "huge pages"
GROUP: Final[Group] = "memory"
MEASURES: Final = False
_ADVICE: Final = (
    "The kernels ask for huge pages for weights: `echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled`."
)


def probe(system: System) -> Finding:
    text = system.text("sys/kernel/mm/transparent_hugepage/enabled")
    chosen = re.search(r"\[(\w+)\]", text or "")
    if chosen is None:
        return Finding("unknown", HIDDEN, "", {"transparent": None})
    facts = {"transparent": chosen[1]}
    if chosen[1] == "never":
        return Finding("hint", "transparent huge pages are off", _ADVICE, facts)
    return Finding("good", f"transparent huge pages: {chosen[1]}", "", facts)
