"""What of a result is kept as numbers beside its JSON, so that it can be filtered and drawn."""

import json
from dataclasses import asdict, dataclass

from tailcut.results import BenchResult, EngineResult, Machine, Ratio
from tailcut.sweep_points import REFERENCE, SweepPoint, percent

Result = BenchResult | SweepPoint


@dataclass(frozen=True, slots=True)
class Measurement:
    """One engine's share of a result, in the order of the table's columns. Ratios are as in `tailcut.results`."""

    engine: str
    weights: str  # that the engine multiplied with; "" where the result does not say
    cut: str  # "alpha 60 %", "dense"
    sparsity: float | None  # as realised
    dense_sha256: str  # of the packages' manifests
    sparse_sha256: str
    workload: str  # JSON
    status: str  # "measured" or the reason why not
    tokens_per_second: float | None
    against: str  # what the speedup is over
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    perplexity_ratio: float | None
    perplexity_low: float | None
    perplexity_high: float | None

    @property
    def series(self) -> str:
        """Measurements of one series are of the same thing at different times."""
        return " ".join(filter(None, (self.cut, self.weights, f"({self.engine})")))


@dataclass(frozen=True, slots=True)
class Head:
    """What all measurements of a result share."""

    model: str
    machine: str
    cpu: str


def head_of(result: Result, model: str | None) -> Head:
    machine: Machine = result.machine
    named = result.model if isinstance(result, SweepPoint) else f"{result.dense.total_parameters} parameters"
    return Head(model or named, machine.fingerprint, machine.cpu)


def measurements(result: Result) -> tuple[Measurement, ...]:
    if isinstance(result, SweepPoint):
        return (_of_point(result),)
    return tuple(_of_engine(result, engine) for engine in result.engines)


def _of_point(point: SweepPoint) -> Measurement:
    facts = point.facts
    own = facts.sha256 if facts else ""
    return Measurement(
        point.engine,
        point.weights,
        point.cut,
        facts.sparsity if facts else None,
        own if point.dense else "",
        "" if point.dense else own,
        json.dumps(asdict(point.workload)),
        point.reason or "measured",
        point.tokens_per_second,
        f"dense float32 ({REFERENCE})",
        *_triple(point.speedup),
        *_triple(point.perplexity_ratio),
    )


def _of_engine(result: BenchResult, engine: EngineResult) -> Measurement:
    quality = result.quality[0].ratio if result.quality else None
    return Measurement(
        engine.engine,
        "",
        f"cut {percent(round(result.sparse.sparsity, 3))}",
        result.sparse.sparsity,
        result.dense.sha256,
        result.sparse.sha256,
        json.dumps(asdict(result.workload)),
        "measured" if engine.status == "measured" else engine.reason or engine.status,
        engine.sparse.tokens_per_second if engine.sparse else None,
        "dense, same engine",
        *_triple(engine.decode_speedup),
        *_triple(quality),
    )


def _triple(ratio: Ratio | None) -> tuple[float | None, float | None, float | None]:
    return (ratio.value, ratio.low, ratio.high) if ratio else (None, None, None)
