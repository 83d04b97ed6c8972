"""Perplexity over dense on every text of the result, by its interval over paired windows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Positive, Subject
from tailcut.bench.checks._judging import interval, missing
from tailcut.bench.checks._seeded import seeded_result
from tailcut.codec import FORBID_EXTRA
from tailcut.results import Check

PER_ENGINE: Final = False


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    max_ppl_ratio: Annotated[
        Positive | None, Field(description="Perplexity over dense, at most, on each text of the result.")
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    limit = limits.max_ppl_ratio
    if limit is None:
        return ()
    if not subject.result.quality:
        return (missing("perplexity ratio", limit, "the result holds no quality: bench with --text"),)
    return tuple(
        interval(f"perplexity ratio on {one.text}", one.ratio, limit, at_least=False, confidence=subject.confidence)
        for one in subject.result.quality
    )


def cases(folder: Path) -> tuple[Case, ...]:
    limits = {"max_ppl_ratio": 1.1}
    worse, good, edge = (Subject(seeded_result(speedup=2.0, ppl_ratio=ratio)) for ratio in (1.3, 1.02, 1.1))
    return (
        Case("a perplexity 30 % above dense fails, 10 % are allowed", worse, limits, "fail"),
        Case("a perplexity 2 % above dense passes", good, limits, "pass"),
        Case("a perplexity at the limit is inconclusive", edge, limits, "inconclusive"),
    )
