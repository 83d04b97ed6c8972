"""Time to first token: against dense, and in ms."""

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
    max_ttft_ratio: Annotated[Positive | None, Field(description="Time to first token over dense, at most.")] = None
    max_ttft_ms: Annotated[
        Positive | None, Field(description="Median time of a prefill of the sparse package in ms, at most.")
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    found, engine, name = [], subject.measured, "time to first token"
    why = engine.prefill_reason and f"prefill was not measured: {engine.prefill_reason}"
    if limits.max_ttft_ratio is not None:
        ratio, limit = inverse(engine.prefill_speedup), limits.max_ttft_ratio
        found.append(timed(subject, "prefill", name, ratio, limit, at_least=False, why_missing=why))
    if limits.max_ttft_ms is not None:
        value, limit = median_ms(subject, engine.sparse, "prefill"), limits.max_ttft_ms
        said = timed(subject, "prefill", f"{name} in ms", value, limit, at_least=False, unit=" ms", why_missing=why)
        found.append(said)
    return tuple(found)


def cases(folder: Path) -> tuple[Case, ...]:
    slow, good, edge = (
        Subject(seeded_result(speedup=2.0, prefill=prefill, seed=3), "seeded") for prefill in (0.5, 1.0, 0.8)
    )
    ratio, time = {"max_ttft_ratio": 1.25}, {"max_ttft_ms": 125.0}  # the dense side takes 100 ms
    return (
        Case("a prefill that takes twice as long as dense fails", slow, ratio, "fail"),
        Case("a prefill as fast as dense passes", good, ratio, "pass"),
        Case("a prefill at the allowed ratio is inconclusive", edge, ratio, "inconclusive"),
        Case("200 ms to the first token fail, at most 125 are allowed", slow, time, "fail"),
        Case("100 ms to the first token pass", good, time, "pass"),
        Case("125 ms, give or take the noise, are inconclusive", edge, time, "inconclusive"),
    )
