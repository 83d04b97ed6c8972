"""The release gate: limits against a measured result, with intervals, and nothing passes unmeasured.

A check passes only if the whole interval is on the good side of the limit, fails only if the whole interval is on
the bad side, and is inconclusive otherwise. What was not measured is never a pass: an engine that is absent makes
the verdict inconclusive, a value that the result does not hold although a limit names it fails. A speed limit
also demands evidence that a sparse kernel ran.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.results import (
    BandwidthPoint,
    BenchResult,
    Check,
    Engagement,
    EngineResult,
    Machine,
    Outcome,
    PackageFacts,
    Ratio,
    Roofline,
    Side,
    Verdict,
    Workload,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a release must hold; None is not judged. Ratios of costs are sparse over dense."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    min_speedup: float | None = None  # decode, dense over sparse
    max_ppl_ratio: float | None = None
    max_ttft_ratio: float | None = None
    max_size_ratio: float | None = None  # bytes of the packages on disk
    max_rss_ratio: float | None = None  # peak resident memory
    min_sparsity: float | None = None  # of the prunable linears, by the manifest
    engine: str | None = None  # judged; None: the first one of the result
    require_engagement: bool = True  # with min_speedup: the engine must show that a sparse kernel ran

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            if isinstance(limit, float | int) and not isinstance(limit, bool) and not 0 < limit < float("inf"):
                raise InputError(f"{name} must be a positive number, got {limit}")
        if self.min_sparsity is not None and self.min_sparsity >= 1:
            raise InputError(f"min_sparsity is a fraction below 1, got {self.min_sparsity}")

    @property
    def stated(self) -> bool:
        return any(value is not None for key, value in asdict(self).items() if key[:4] in ("min_", "max_"))


def judge(result: BenchResult, limits: Limits) -> Verdict:
    """Every limit that was given becomes one check; the worst check is the verdict."""
    name = limits.engine or (result.engines[0].engine if result.engines else "")
    checks = tuple(_engine_checks(result, name, limits) + _package_checks(result, limits))
    if not checks:
        return Verdict("pass", name, (), "no limits were given: nothing was judged", asdict(limits))
    outcome: Outcome = "pass"
    if any(check.outcome == "fail" for check in checks):
        outcome = "fail"
    elif any(check.outcome == "inconclusive" for check in checks):
        outcome = "inconclusive"
    others = [engine.engine for engine in result.engines if engine.engine != name]
    note = f"judged on {name}" + (f"; {', '.join(others)} for information" if others else "")
    return Verdict(outcome, name, checks, note, asdict(limits))


def _engine_checks(result: BenchResult, name: str, limits: Limits) -> list[Check]:
    wanted = (limits.min_speedup, limits.max_ttft_ratio, limits.max_rss_ratio)
    if all(limit is None for limit in wanted):
        return []
    engine = result.engine(name)
    if engine is None or engine.status == "not measured":
        reason = engine.reason if engine else "the result holds no measurement of it"
        return [_unmeasured("engine", f"{name}: not measured: {reason}")]
    checks = []
    if limits.min_speedup is not None:
        checks.append(_ratio("decode speedup", engine.decode_speedup, limits.min_speedup, at_least=True))
        if limits.require_engagement:
            checks.append(_engaged(engine))
    if limits.max_ttft_ratio is not None:
        ttft = engine.prefill_speedup.inverse() if engine.prefill_speedup else None
        checks.append(_ratio("time to first token", ttft, limits.max_ttft_ratio, at_least=False))
    if limits.max_rss_ratio is not None:
        checks.append(_exact("peak memory", _rss_ratio(engine), limits.max_rss_ratio, at_least=False))
    return checks


def _package_checks(result: BenchResult, limits: Limits) -> list[Check]:
    checks = []
    if limits.max_ppl_ratio is not None:
        if not result.quality:
            checks.append(_missing("perplexity ratio", limits.max_ppl_ratio))
        checks += [
            _ratio(f"perplexity ratio on {quality.text}", quality.ratio, limits.max_ppl_ratio, at_least=False)
            for quality in result.quality
        ]
    if limits.max_size_ratio is not None:
        dense = result.dense.bytes_on_disk
        size = result.sparse.bytes_on_disk / dense if dense else None
        checks.append(_exact("size on disk", size, limits.max_size_ratio, at_least=False))
    if limits.min_sparsity is not None:
        checks.append(_exact("sparsity", result.sparse.sparsity, limits.min_sparsity, at_least=True))
    return checks


def _rss_ratio(engine: EngineResult) -> float | None:
    if engine.dense is None or engine.sparse is None or not engine.dense.peak_rss_bytes:
        return None
    return engine.sparse.peak_rss_bytes / engine.dense.peak_rss_bytes


def _ratio(name: str, ratio: Ratio | None, limit: float, *, at_least: bool) -> Check:
    """An interval against a limit."""
    if ratio is None:
        return _missing(name, limit)
    passes = ratio.low >= limit if at_least else ratio.high <= limit
    fails = ratio.high < limit if at_least else ratio.low > limit
    outcome: Outcome = "pass" if passes else "fail" if fails else "inconclusive"
    relation = "at least" if at_least else "at most"
    sentence = (
        f"{name} {ratio.value:.3f} ({ratio.confidence:.0%} interval {ratio.low:.3f} to {ratio.high:.3f}), "
        f"{relation} {limit:g} is required"
    )
    if outcome == "inconclusive":
        sentence += "; the interval straddles the limit: more blocks or a quieter machine would decide"
    return Check(name, outcome, limit, ratio.value, ratio.low, ratio.high, sentence)


def _exact(name: str, value: float | None, limit: float, *, at_least: bool) -> Check:
    """A number without noise against a limit. Sparsity is met within half a per mille: budgets round to weights."""
    if value is None:
        return _missing(name, limit)
    good = value >= limit - 5e-4 if at_least else value <= limit
    relation = "at least" if at_least else "at most"
    sentence = f"{name} {value:.3f}, {relation} {limit:g} is required"
    return Check(name, "pass" if good else "fail", limit, value, value, value, sentence)


def _engaged(engine: EngineResult) -> Check:
    shown = engine.engagement or Engagement(False, "the engine gave no evidence of a sparse kernel")
    sentence = f"{engine.engine}: {shown.reason}"
    return Check("sparse kernel engaged", "pass" if shown.proven else "fail", None, None, None, None, sentence)


def _missing(name: str, limit: float) -> Check:
    return Check(
        name, "fail", limit, None, None, None, f"{name} has the limit {limit:g} but the result does not hold it"
    )


def _unmeasured(name: str, sentence: str) -> Check:
    return Check(name, "inconclusive", None, None, None, None, sentence)


def self_test() -> tuple[tuple[str, bool], ...]:
    """(what was tried, whether the gate answered rightly): seeded candidates whose verdict is known."""
    limits = Limits(min_speedup=1.5)
    good = seeded_result(speedup=2.0)
    cases: tuple[tuple[str, BenchResult, Callable[[Verdict], bool]], ...] = (
        ("a slow candidate (1.1x, limit 1.5x) fails", seeded_result(speedup=1.1), lambda v: v.outcome == "fail"),
        ("a fast candidate (2.0x) passes", good, lambda v: v.outcome == "pass"),
        ("a candidate at the limit is inconclusive", seeded_result(speedup=1.5), lambda v: v.outcome == "inconclusive"),
        ("an unmeasured engine never passes", _without_measurement(good), lambda v: v.outcome == "inconclusive"),
        ("a fast engine without evidence fails", _without_evidence(good), lambda v: v.outcome == "fail"),
    )
    return tuple((what, right(judge(result, limits))) for what, result, right in cases)


def seeded_result(*, speedup: float, seed: int = 7) -> BenchResult:
    """A made-up result with realistic noise (5 % between blocks, 2 % within) and a known true speedup."""
    import numpy as np

    from tailcut.bench.stats import median_ratio

    rng = np.random.default_rng(seed)
    noise = np.exp(rng.normal(0, 0.05, (8, 1)) + rng.normal(0, 0.02, (8, 32)))
    dense = tuple(tuple(float(ms) for ms in row) for row in 10.0 * noise)
    noise = np.exp(rng.normal(0, 0.05, (8, 1)) + rng.normal(0, 0.02, (8, 32)))
    sparse = tuple(tuple(float(ms) for ms in row) for row in 10.0 / speedup * noise)
    line = Roofline(weight_bytes=10**8, kv_bytes=10**6, estimate=False, gb_per_s=10.0, share=0.5)
    side = Side("dense", "", 1, 0.0, dense, dense, (0.0,) * 8, 1, 100.0, line, {})
    engine = EngineResult(
        engine="seeded",
        status="measured",
        engagement=Engagement(True, "seeded"),
        dense=side,
        sparse=replace(side, role="sparse", decode_ms=sparse, prefill_ms=sparse),
        decode_speedup=median_ratio(dense, sparse, seed=seed),
        prefill_speedup=median_ratio(dense, sparse, seed=seed),
    )
    facts = PackageFacts("", 1, 0.5, 0.4, 1)
    machine = Machine("seeded", (), 1, 1, 1, 1, None, "", {}, None, "seeded")
    point = BandwidthPoint(1, 20.0, (20.0,))
    return BenchResult(machine, (point,), Workload(), facts, facts, (engine,))


def _without_measurement(result: BenchResult) -> BenchResult:
    return replace(result, engines=(EngineResult("seeded", "not measured", "absent"),))


def _without_evidence(result: BenchResult) -> BenchResult:
    return replace(result, engines=(replace(result.engines[0], engagement=None),))
