"""Decode speed of sparse over dense: the ratio that the paired benchmark was made for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Positive, Subject
from tailcut.bench.checks._judging import timed
from tailcut.bench.checks._seeded import seeded_result
from tailcut.codec import FORBID_EXTRA
from tailcut.results import Check

PER_ENGINE: Final = True
IMPLIES: Final[Mapping[str, bool]] = {"require_engagement": True}  # unless the policy says otherwise


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    min_speedup: Annotated[Positive | None, Field(description="Decode speed of sparse over dense, at least.")] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    if limits.min_speedup is None:
        return ()
    ratio = subject.measured.decode_speedup
    return (timed(subject, "decode", "decode speedup", ratio, limits.min_speedup, at_least=True),)


def cases(folder: Path) -> tuple[Case, ...]:
    limits = {"min_speedup": 1.5}
    slow, fast, edge = (Subject(seeded_result(speedup=speedup), "seeded") for speedup in (1.1, 2.0, 1.5))
    return (
        Case("a slow candidate (1.1x, limit 1.5x) fails", slow, limits, "fail"),
        Case("a fast candidate (2.0x) passes", fast, limits, "pass"),
        Case("a candidate at the limit is inconclusive", edge, limits, "inconclusive"),
    )
