"""KL(dense || sparse) of the next token in nats: catches a changed model where a text's perplexity happens to hold."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Positive, Subject
from tailcut.bench.checks._intervals import mean
from tailcut.bench.checks._judging import interval, missing
from tailcut.bench.checks._seeded import seeded_result
from tailcut.codec import FORBID_EXTRA
from tailcut.results import Check

PER_ENGINE: Final = False
_WHY: Final = "the result holds no KL: bench with --text and --kl"


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    max_kl: Annotated[
        Positive | None, Field(description="Mean KL(dense || sparse) of the next token in nats, at most, on each text.")
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    limit, confidence = limits.max_kl, subject.confidence
    if limit is None:
        return ()
    if not subject.result.quality:
        return (missing("KL to dense", limit, _WHY),)
    return tuple(
        interval(
            f"KL to dense on {one.text}",
            mean(one.kl_nats, confidence),
            limit,
            at_least=False,
            confidence=confidence,
            unit=" nats",
            why_missing=_WHY,
        )
        for one in subject.result.quality
    )


def cases(folder: Path) -> tuple[Case, ...]:
    limits = {"max_kl": 0.05}
    worse, good, edge = (Subject(seeded_result(speedup=2.0, kl=kl)) for kl in (0.2, 0.01, 0.05))
    return (
        Case("0.2 nats from dense fail, 0.05 are allowed", worse, limits, "fail"),
        Case("0.01 nats from dense pass", good, limits, "pass"),
        Case("0.05 nats, give or take the windows, are inconclusive", edge, limits, "inconclusive"),
    )
