"""`doctor`: every probe of `bench/probes` on this machine, in one value.

A probe that fails in a way nobody foresaw becomes "unknown" with the reason, so that one odd machine does not hide what
the others see. Probes that measure hold the machine's lock: a benchmark that runs is neither disturbed nor measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tailcut import __version__
from tailcut.bench import probes
from tailcut.bench.lock import machine_lock
from tailcut.bench.probes import GROUPS, Finding, Group, Level, Probe, System
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import TailcutError
from tailcut.progress import Reporter, silent


@dataclass(frozen=True, slots=True)
class Examined:
    """One probe's finding."""

    probe: str
    title: str
    group: Group
    level: Level
    sentence: str
    advice: str
    facts: Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class Examination:
    """All findings, in the order of their groups."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    findings: tuple[Examined, ...]
    made_by: str = ""

    @property
    def can_run(self) -> bool:
        """Whether nothing keeps tailcut's kernels from running here."""
        return not any(found.level == "blocked" for found in self.findings)


def examine(*, measure: bool = True, system: System | None = None, report: Reporter = silent) -> Examination:
    """Ask every probe; without `measure` those that need the machine for seconds are left out."""
    loaded = {name: probes.load(name) for name in probes.names()}
    chosen = [name for name, probe in loaded.items() if measure or not probe.MEASURES]
    ordered = sorted(chosen, key=lambda name: (GROUPS.index(loaded[name].GROUP), name))
    found: dict[str, Examined] = {}
    looked = system or System()
    for name in ordered:
        if not loaded[name].MEASURES:
            found[name] = _examined(name, loaded[name], looked)
    measuring = [name for name in ordered if loaded[name].MEASURES]
    if measuring:
        with machine_lock(report):
            for done, name in enumerate(measuring):
                report("doctor", done, len(measuring), loaded[name].TITLE)
                found[name] = _examined(name, loaded[name], looked)
            report("doctor", len(measuring), len(measuring))
    return Examination(tuple(found[name] for name in ordered), f"tailcut {__version__} doctor")


def _examined(name: str, probe: Probe, system: System) -> Examined:
    try:
        found = probe.probe(system)
    except (OSError, ValueError, ArithmeticError, MemoryError, TailcutError) as error:
        found = Finding("unknown", f"could not be looked at ({type(error).__name__}: {error})")
    return Examined(name, probe.TITLE, probe.GROUP, found.level, found.sentence, found.advice, found.facts)
