"""Peak resident memory of the sparse side's process: against dense, and in MB."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Positive, Subject
from tailcut.bench.checks._judging import exact
from tailcut.bench.checks._seeded import seeded_result
from tailcut.codec import FORBID_EXTRA
from tailcut.results import Check

PER_ENGINE: Final = True


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    max_rss_ratio: Annotated[Positive | None, Field(description="Peak resident memory over dense, at most.")] = None
    max_rss_mb: Annotated[
        Positive | None, Field(description="Peak resident memory of the sparse side in MB (1e6 bytes), at most.")
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    found = []
    dense, sparse = (side.peak_rss_bytes if side else 0 for side in (subject.measured.dense, subject.measured.sparse))
    if limits.max_rss_ratio is not None:
        ratio = sparse / dense if sparse > 0 and dense > 0 else None
        found.append(exact("peak memory", ratio, limits.max_rss_ratio, at_least=False))
    if limits.max_rss_mb is not None:
        used = sparse / 1e6 if sparse > 0 else None
        found.append(exact("peak memory in MB", used, limits.max_rss_mb, at_least=False, unit=" MB"))
    return tuple(found)


def cases(folder: Path) -> tuple[Case, ...]:
    grown, shrunk = (Subject(seeded_result(speedup=2.0, cost=cost), "seeded") for cost in (1.4, 0.5))
    ratio, absolute = {"max_rss_ratio": 1.0}, {"max_rss_mb": 800.0}  # the dense side takes 1000
    return (
        Case("more memory than dense fails", grown, ratio, "fail"),
        Case("half the memory of dense passes", shrunk, ratio, "pass"),
        Case("1400 MB fail, at most 800 are allowed", grown, absolute, "fail"),
        Case("500 MB pass", shrunk, absolute, "pass"),
    )
