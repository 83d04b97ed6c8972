"""Time per output token of the sparse package, in ms: the promise to whoever waits for text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Positive, Subject
from tailcut.bench.checks._intervals import median_ms
from tailcut.bench.checks._judging import timed
from tailcut.bench.checks._seeded import seeded_result
from tailcut.codec import FORBID_EXTRA
from tailcut.results import Check

PER_ENGINE: Final = True


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    max_tpot_ms: Annotated[
        Positive | None, Field(description="Median time of a decode step of the sparse package in ms, at most.")
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    if limits.max_tpot_ms is None:
        return ()
    value = median_ms(subject, subject.measured.sparse, "decode")
    return (timed(subject, "decode", "time per output token", value, limits.max_tpot_ms, at_least=False, unit=" ms"),)


def cases(folder: Path) -> tuple[Case, ...]:
    limits = {"max_tpot_ms": 6.0}  # the dense side takes 10 ms
    slow, fast, edge = (Subject(seeded_result(speedup=speedup), "seeded") for speedup in (1.1, 2.0, 10 / 6))
    return (
        Case("9 ms a token fail, at most 6 are allowed", slow, limits, "fail"),
        Case("5 ms a token pass", fast, limits, "pass"),
        Case("6 ms a token, give or take the noise, are inconclusive", edge, limits, "inconclusive"),
    )
