"""Tokens a second of the sparse package, all sequences of the batch together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Positive, Subject
from tailcut.bench.checks._intervals import inverse, median_ms
from tailcut.bench.checks._judging import timed
from tailcut.bench.checks._seeded import seeded_result
from tailcut.codec import FORBID_EXTRA
from tailcut.results import Check

PER_ENGINE: Final = True


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    min_tokens_per_second: Annotated[
        Positive | None, Field(description="Decoded tokens a second of the sparse package, the whole batch, at least.")
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    if limits.min_tokens_per_second is None:
        return ()
    step = median_ms(subject, subject.measured.sparse, "decode")
    rate = inverse(step, 1e3 * subject.result.workload.batch)
    return (timed(subject, "decode", "tokens per second", rate, limits.min_tokens_per_second, at_least=True),)


def cases(folder: Path) -> tuple[Case, ...]:
    limits = {"min_tokens_per_second": 150.0}  # the dense side makes 100
    slow, fast, edge = (Subject(seeded_result(speedup=speedup), "seeded") for speedup in (1.1, 2.0, 1.5))
    return (
        Case("110 tokens a second fail, at least 150 are required", slow, limits, "fail"),
        Case("200 tokens a second pass", fast, limits, "pass"),
        Case("150, give or take the noise, are inconclusive", edge, limits, "inconclusive"),
    )
