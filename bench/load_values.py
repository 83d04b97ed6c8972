"""What a load measurement was asked to do and what it saw: concurrent streams, and decode steps at growing contexts.

Frozen, JSON, all raw samples kept; times in milliseconds. Ratios are dense over sparse for times and sparse over dense for
throughput, so that more than 1 always means that sparse is faster.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal

import numpy as np

from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.results import Blocks, Engagement, Machine, PackageFacts, Procedure, Ratio, Workload

PERCENTILES: Final = (50, 90, 95, 99)
_MOST_A_SECOND: Final = 1e4  # beyond it the loop would do little but count arrivals


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Stream counts and context lengths to measure, and how."""

    streams: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    prompt_tokens: int = 128
    new_tokens: int = 64
    rate: float | None = None  # requests a second that arrive at random moments; None: users who ask again at once
    requests: int = 1  # that end in one visit, for each stream
    blocks: int = 4  # of four visits each: dense, sparse, sparse, dense
    steps: int = 16  # decode steps a visit, of the series of contexts
    warmup_steps: int = 2
    threads: int = 1
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "requests", "blocks", "steps", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name.replace('_', ' ')} must be at least 1, got {getattr(self, name)}")
        if not self.streams and not self.contexts:
            raise InputError("nothing to measure: name stream counts or contexts")
        if any(count < 1 for count in self.streams):
            raise InputError(f"stream counts must be at least 1, got {min(self.streams)}")
        least = 2 * self.steps + self.warmup_steps + 1
        if any(context < least for context in self.contexts):
            raise InputError(
                f"context {min(self.contexts)} is too short to time {self.steps} steps in it; take contexts of at least "
                f"{least}, or fewer steps"
            )
        if self.rate is not None and not 0.0 < self.rate <= _MOST_A_SECOND:
            raise InputError(f"rate must be above 0 and at most {_MOST_A_SECOND:g} requests a second, got {self.rate}")
        if not 0.5 <= self.confidence < 1.0:
            raise InputError(f"confidence must be in [0.5, 1), got {self.confidence}")

    @property
    def positions(self) -> int:
        """Tokens of one request, its prompt included."""
        return self.prompt_tokens + self.new_tokens

    @property
    def longest(self) -> int:
        """Positions that an engine has to hold for one sequence."""
        return max((self.positions if self.streams else 0, *self.contexts))

    @property
    def opening(self) -> Workload:
        """For an engine's `launch`: everything of the plan fits into it."""
        if not self.streams:
            return self.workload(self.longest)
        return Workload(
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            context=self.longest,
            threads=self.threads,
            blocks=self.blocks,
            warmup_steps=0,
            seed=self.seed,
            confidence=self.confidence,
        )

    def workload(self, context: int) -> Workload:
        """Decode steps that end at `context` cached positions."""
        return Workload(
            prompt_tokens=min(self.prompt_tokens, context - 2 * self.steps),
            new_tokens=2 * self.steps,
            context=context,
            threads=self.threads,
            blocks=self.blocks,
            warmup_steps=self.warmup_steps,
            seed=self.seed,
            confidence=self.confidence,
        )


@dataclass(frozen=True, slots=True)
class Visit:
    """One turn of one side: what was served while the other side waited."""

    seconds: float
    tokens: int
    requests: int  # that ended
    running: float  # sequences in a step, on average
    waiting: int  # requests without a slot at the end
    others_cpu_share: float  # of the machine, used by anyone else meanwhile
    ttft_ms: tuple[float, ...]  # arrival to first token
    itl_ms: tuple[float, ...]  # between two tokens of one request

    @property
    def ms_per_token(self) -> float:
        return 1e3 * self.seconds / self.tokens


Visits = tuple[tuple[Visit, Visit], ...]  # the two visits of each ABBA block


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of a side's samples, of its visits together."""

    samples: int
    p50: float
    p90: float
    p99: float
    p95: float | None = None  # not in results of earlier versions

    @classmethod
    def of(cls, samples: Iterable[float]) -> "Latency | None":
        found = np.fromiter(samples, np.float64)
        if not found.size:
            return None
        return cls(found.size, **{f"p{share}": float(np.percentile(found, share)) for share in PERCENTILES})


@dataclass(frozen=True, slots=True)
class LoadSide:
    """One side under so many streams; figures are of the blocks that were not disturbed."""

    tokens_per_second: float  # all tokens over all seconds
    ttft_ms: Latency | None
    itl_ms: Latency | None
    visits: Visits


def quiet(visits: Visits, disturbed: Sequence[str]) -> Visits:
    """The blocks without a reason against them."""
    return tuple(block for block, reason in zip(visits, disturbed, strict=True) if not reason)


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One stream count of one engine, or the reason why it was not measured."""

    streams: int
    reason: str = ""
    sharing: str = ""  # how they share the machine
    dense: LoadSide | None = None
    sparse: LoadSide | None = None
    disturbed: tuple[str, ...] = ()  # of each block: why it is in no statistic (bench/sentinel.py), "" where it is
    loud: bool = False  # so few blocks were undisturbed that all are in the statistics: no claim can rest on them
    throughput: Ratio | None = None
    ttft: Mapping[str, Ratio] | None = None  # "p50", "p90", "p95", "p99"
    itl: Mapping[str, Ratio] | None = None

    def counted(self, side: LoadSide) -> Visits:
        """The blocks of a side that are in the statistics."""
        return side.visits if self.loud else quiet(side.visits, self.disturbed)


@dataclass(frozen=True, slots=True)
class ContextPoint:
    """Decode steps that end at one context length, or the reason why they were not measured."""

    context: int
    reason: str = ""
    dense_ms: Blocks = ()
    sparse_ms: Blocks = ()
    speedup: Ratio | None = None
    byte_ratio: float | None = None  # what the bytes of a token (weights and cache) would allow
    cache_share: float | None = None  # of the sparse side's bytes, keys and values
    procedure: Procedure | None = None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """One engine's points, or the reason why it has none."""

    engine: str
    status: Literal["measured", "not measured"]
    reason: str = ""
    version: str = ""
    engagement: Engagement | None = None
    streams: tuple[LoadPoint, ...] = ()
    contexts: tuple[ContextPoint, ...] = ()
    dense_evidence: Mapping[str, str | int | float | bool | None] | None = None
    sparse_evidence: Mapping[str, str | int | float | bool | None] | None = None
    licence: str = ""
    cautions: tuple[str, ...] = ()

    def with_point(self, point: LoadPoint | ContextPoint) -> "EngineLoad":
        if isinstance(point, LoadPoint):
            return replace(self, streams=(*self.streams, point))
        return replace(self, contexts=(*self.contexts, point))


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Everything that one `tailcut bench-load` measured on one machine."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    VISIBLE_TEXT: ClassVar[bool] = True
    machine: Machine
    plan: LoadPlan
    dense: PackageFacts
    sparse: PackageFacts
    engines: tuple[EngineLoad, ...]
    made_by: str = ""


def stated(streams: int) -> str:
    """Such as "1 stream"."""
    return f"{streams} stream{'s' if streams > 1 else ''}"
