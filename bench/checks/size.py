"""Bytes of the package on disk: against dense, and in MB."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Positive, Subject
from tailcut.bench.checks._judging import exact
from tailcut.bench.checks._seeded import seeded_result
from tailcut.codec import FORBID_EXTRA
from tailcut.results import Check

PER_ENGINE: Final = False


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    max_size_ratio: Annotated[Positive | None, Field(description="Bytes of the package over dense, at most.")] = None
    max_size_mb: Annotated[Positive | None, Field(description="Size of the package in MB (1e6 bytes), at most.")] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    found = []
    dense, sparse = subject.result.dense.bytes_on_disk, subject.result.sparse.bytes_on_disk
    if limits.max_size_ratio is not None:
        ratio = sparse / dense if sparse > 0 and dense > 0 else None
        found.append(exact("size on disk", ratio, limits.max_size_ratio, at_least=False))
    if limits.max_size_mb is not None:
        size = sparse / 1e6 if sparse > 0 else None
        found.append(exact("size on disk in MB", size, limits.max_size_mb, at_least=False, unit=" MB"))
    return tuple(found)


def cases(folder: Path) -> tuple[Case, ...]:
    same, half = (Subject(seeded_result(speedup=2.0, cost=cost)) for cost in (1.0, 0.5))
    ratio, absolute = {"max_size_ratio": 0.6}, {"max_size_mb": 300.0}  # the dense package takes 500
    return (
        Case("a package as large as dense fails", same, ratio, "fail"),
        Case("half the size passes", half, ratio, "pass"),
        Case("500 MB fail, at most 300 are allowed", same, absolute, "fail"),
        Case("250 MB pass", half, absolute, "pass"),
    )
