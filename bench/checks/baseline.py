"""Drift against an earlier release's result, of the same machine only.

Speeds of two machines are never compared: another fingerprint is refused with a sentence, and so is another workload or
another engine version's absence. Two sessions share nothing, so their errors add; the paired speedup moves least between
sessions, ms a token moves with everything else the machine does. Perplexities are paired where text and windows are the same.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Final

import numpy as np
from pydantic import Field

from tailcut.bench.checks import Case, Positive, Subject
from tailcut.bench.checks._intervals import of_two_sessions, quotient
from tailcut.bench.checks._judging import interval, missing, timed, undecided
from tailcut.bench.checks._seeded import seeded_result
from tailcut.bench.stats import mean_exp_ratio
from tailcut.codec import FORBID_EXTRA
from tailcut.results import BenchResult, Check, EngineResult, Quality, Ratio

PER_ENGINE: Final = True
_SAME: Final = ("batch", "prompt_tokens", "context", "threads")  # of the workload; blocks and steps only set the noise
_WHY: Final = "no baseline was given: pass a result of this machine with --baseline"


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    min_speedup_of_baseline: Annotated[
        Positive | None, Field(description="Decode speedup over the baseline's (0.95: 5 % may be lost), at least.")
    ] = None
    max_tpot_of_baseline: Annotated[
        Positive | None, Field(description="Time per output token over the baseline's, at most.")
    ] = None
    max_ppl_of_baseline: Annotated[
        Positive | None,
        Field(description="Perplexity of the sparse model over the baseline's on the same text, at most."),
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    names = {
        "speedup over the baseline's": limits.min_speedup_of_baseline,
        "time per token over the baseline's": limits.max_tpot_of_baseline,
        "perplexity over the baseline's": limits.max_ppl_of_baseline,
    }
    stated = {name: limit for name, limit in names.items() if limit is not None}
    old = subject.baseline
    if old is None:
        return tuple(missing(name, limit, _WHY) for name, limit in stated.items())
    return tuple(_one(name, limit, subject, old) for name, limit in stated.items())


def _one(name: str, limit: float, subject: Subject, old: BenchResult) -> Check:
    if name.startswith("perplexity"):
        return _perplexity(name, limit, subject, old)
    engine = old.engine(subject.engine)
    if reason := _incomparable(subject, old, engine):
        return undecided(name, f"{name}: {reason}", limit)
    speedup = name.startswith("speedup")
    value = _speedup(subject, engine) if speedup else _time(subject, engine)
    return timed(subject, "decode", name, value, limit, at_least=speedup)


def _incomparable(subject: Subject, old: BenchResult, engine: EngineResult | None) -> str | None:
    here, there = subject.result.machine.fingerprint, old.machine.fingerprint
    if not here or here != there:
        return (
            f"the baseline is of another machine (fingerprint {there or 'none'}, here {here or 'none'}); speeds of two "
            "machines are not compared: measure a baseline on this one"
        )
    for field in _SAME:
        now, then = getattr(subject.result.workload, field), getattr(old.workload, field)
        if now != then:
            return f"the baseline was measured with {field} {then}, this result with {now}; measure both alike"
    if engine is None or engine.status != "measured":
        return f"the baseline holds no measurement of {subject.engine}"
    procedure = engine.procedure("decode")
    if procedure is not None and procedure.loud:
        return "the machine was disturbed in nearly all blocks of the baseline; measure it again when it is quieter"
    new = subject.measured
    device, before = (one.sparse.evidence.get("device") if one.sparse else None for one in (new, engine))
    return f"the baseline ran on {before}, this result on {device}" if device != before else None


def _speedup(subject: Subject, old: EngineResult | None) -> Ratio | None:
    new = subject.measured.decode_speedup
    return quotient(new, old.decode_speedup) if new and old and old.decode_speedup else None


def _time(subject: Subject, old: EngineResult | None) -> Ratio | None:
    new = subject.measured.sparse
    if new is None or old is None or old.sparse is None:
        return None
    return of_two_sessions(
        new.decode_ms, old.sparse.decode_ms, subject.confidence, subject.measured.procedure("decode")
    )


def _perplexity(name: str, limit: float, subject: Subject, old: BenchResult) -> Check:
    """Quality does not depend on the machine: the same text, windows and joining are what must agree."""
    for new in subject.result.quality:
        for before in old.quality:
            if _key(new) == _key(before):
                scored = new.tokens_scored // max(1, len(new.sparse_nll))
                then, now = (np.asarray(one.sparse_nll, np.float64) for one in (before, new))
                value = mean_exp_ratio(then, now, scored, confidence=subject.confidence)
                return interval(name, value, limit, at_least=False, confidence=subject.confidence)
    return undecided(name, f"{name}: the two results share no text with the same windows", limit)


def _key(quality: Quality) -> tuple[object, ...]:
    facts = (quality.text_sha256, quality.joining, quality.context, quality.bos, len(quality.sparse_nll))
    return (*facts, quality.tokens_scored)


def cases(folder: Path) -> tuple[Case, ...]:
    old = seeded_result(speedup=2.0, ppl_ratio=1.02)
    elsewhere = replace(old, machine=replace(old.machine, fingerprint="another"))

    def against(baseline: BenchResult, speedup: float = 2.0, ppl_ratio: float = 1.02) -> Subject:
        return Subject(seeded_result(speedup=speedup, ppl_ratio=ppl_ratio, seed=8), "seeded", baseline=baseline)

    speed, time, quality = (
        {"min_speedup_of_baseline": 0.85},
        {"max_tpot_of_baseline": 1.18},
        {"max_ppl_of_baseline": 1.05},
    )
    return (
        Case("a speedup of 1.4x after 2.0x fails, 15 % may be lost", against(old, 1.4), speed, "fail"),
        Case("a speedup of 2.0x after 2.0x passes", against(old), speed, "pass"),
        Case("a speedup of 1.7x after 2.0x is inconclusive", against(old, 1.7), speed, "inconclusive"),
        Case("another machine's baseline is not compared", against(elsewhere), speed, "inconclusive"),
        Case("a token in 7 ms after 5 ms fails", against(old, 1.4), time, "fail"),
        Case("a token in 5 ms after 5 ms passes", against(old), time, "pass"),
        Case("another machine's ms are not compared, faster or not", against(elsewhere, 3.0), time, "inconclusive"),
        Case("a perplexity 18 % above the baseline's fails, 5 % are allowed", against(old, 2.0, 1.2), quality, "fail"),
        Case("the baseline's perplexity passes", against(old), quality, "pass"),
    )
