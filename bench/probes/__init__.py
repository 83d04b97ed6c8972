"""What `tailcut doctor` looks at: one file each, found by listing this folder. A module here satisfies `Probe`.

A probe reads one thing about the machine and says in a sentence what it is, whether that is good for running or for
measuring, and if not, what to do. Files are read below `System.root`, so that tests bring their own /proc and /sys, and a
file that is not there (containers hide many) is "not shown by the system", never an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol, cast

from tailcut import plugins
from tailcut.bench.machine import usable_cpus

# good: nothing to do; unknown: the system does not say; hint: speed or trust could be better; blocked: cannot run
Level = Literal["good", "unknown", "hint", "blocked"]
Group = Literal["running", "processor", "limits", "memory", "quiet"]
GROUPS: Final[tuple[Group, ...]] = ("running", "processor", "limits", "memory", "quiet")
HIDDEN: Final = "not shown by the system"


Facts = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe saw. `advice` is a sentence, or "" where there is nothing to do; `facts` are for programs."""

    level: Level
    sentence: str
    advice: str = ""
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class System:
    """Where files are read from, and the CPUs that this process may use."""

    root: Path = Path("/")
    cpus: tuple[int, ...] = field(default_factory=lambda: tuple(usable_cpus()))

    def text(self, path: str) -> str | None:
        """A file's text without the space around it; None if it is absent, unreadable or empty."""
        try:
            return (self.root / path).read_text(errors="replace").strip() or None
        except (OSError, ValueError):  # a path from another file may hold anything
            return None

    def number(self, path: str) -> int | None:
        """A file that is one whole number."""
        text = self.text(path)
        return int(text) if text is not None and text.lstrip("-").isdecimal() else None

    def per_cpu(self, path: str) -> dict[int, str]:
        """The text of `path` below the directory of each usable CPU, for those that have it."""
        found = {cpu: self.text(f"sys/devices/system/cpu/cpu{cpu}/{path}") for cpu in self.cpus}
        return {cpu: text for cpu, text in found.items() if text is not None}

    def processor(self) -> dict[str, str]:
        """The first processor's lines of /proc/cpuinfo."""
        lines = (self.text("proc/cpuinfo") or "").split("\n\n")[0].splitlines()
        pairs = (line.partition(":") for line in lines)
        return {key.strip(): value.strip() for key, _, value in pairs}

    def flags(self) -> frozenset[str]:
        """The processor's feature flags, as Linux names them."""
        info = self.processor()
        return frozenset((info.get("flags") or info.get("Features") or "").split())

    def cgroup(self, file: str, controller: str, old_file: str) -> str | None:
        """A limit of the control group that this process sees: version 2's file, else version 1's."""
        own = dict(_cgroups(self.text("proc/self/cgroup") or ""))
        for base, path, name in (
            ("sys/fs/cgroup", own.get("", ""), file),
            (f"sys/fs/cgroup/{controller}", own.get(controller, ""), old_file),
        ):
            for directory in dict.fromkeys((f"{base}{path}".rstrip("/"), base)):  # containers often show the base only
                if (text := self.text(f"{directory}/{name}")) is not None:
                    return text
        return None


def _cgroups(text: str) -> list[tuple[str, str]]:
    """(controller, path) of each line of /proc/self/cgroup; version 2's controller is ""."""
    parts = (line.split(":", 2) for line in text.splitlines())
    return [(kind, fields[2]) for fields in parts if len(fields) == 3 for kind in fields[1].split(",")]


class Probe(Protocol):
    """What a file in this folder provides."""

    TITLE: str  # two words for the left column
    GROUP: Group
    MEASURES: bool  # True: it takes seconds of the machine

    def probe(self, system: System) -> Finding: ...


def names() -> tuple[str, ...]:
    return plugins.names(__name__)


def load(name: str) -> Probe:
    return cast(Probe, plugins.load(__name__, name))
