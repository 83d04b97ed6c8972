"""What a sweep measures: one point is one package under one engine on one machine, with its raw samples.

Speeds of different sessions cannot be compared as milliseconds: the machine moves between them. So every session of
a sweep holds the same reference row (the dense float32 package in ONNX Runtime), taken in turn with the others, and a
point's speed is its ratio to the reference of its own session.
"""

import statistics
from dataclasses import dataclass
from typing import ClassVar, Final

from tailcut.codec import FORBID_EXTRA
from tailcut.quantised import Precision
from tailcut.results import Blocks, Machine, PackageFacts, Quality, Ratio, Workload

REFERENCE: Final = "onnxruntime-fused"  # the dense baseline at its best, float32


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One measured point. `reason` says why `ms` is empty, `quality_reason` why there is no quality."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    key: str  # hash of everything the measurement depends on
    model: str  # the directory's name
    model_sha256: str
    allocator: str | None  # None: the dense model
    sparsity: float  # as asked for; 0 for the dense model
    pattern: str | None  # "2:4"; None: unstructured
    weights: Precision  # that the engine multiplies with
    engine: str
    machine: Machine
    workload: Workload
    facts: PackageFacts | None = None
    reason: str = ""
    version: str = ""  # the engine's
    ms: Blocks = ()  # decode steps, [rounds][steps]
    reference_ms: Blocks = ()  # of the reference in the same rounds
    speedup: Ratio | None = None  # reference over this point: more than 1 is faster
    others_cpu_share: tuple[float, ...] = ()  # of the machine, used by anyone else, a round
    stream_gb_per_s: tuple[float, ...] = ()
    load_seconds: float = 0.0
    peak_rss_bytes: int = 0
    bytes_on_disk: int = 0  # of the directory that the engine opened
    sparse_kernel: bool = False
    sparse_reason: str = ""
    quality: Quality | None = None  # against the dense float32 package
    quality_reason: str = ""
    licence: str = ""
    made_by: str = ""

    @property
    def dense(self) -> bool:
        return self.allocator is None

    @property
    def cut(self) -> str:
        """Which weights are gone: "dense", "alpha 60 %", "uniform 2:4"."""
        if self.allocator is None:
            return "dense"
        return f"{self.allocator} {self.pattern or percent(self.sparsity)}"

    @property
    def label(self) -> str:
        return f"{self.cut} {self.weights} ({self.engine})"

    @property
    def perplexity_ratio(self) -> Ratio | None:
        return self.quality.ratio if self.quality else None

    @property
    def tokens_per_second(self) -> float | None:
        """All sequences of the batch together; moves with the machine, unlike `speedup`."""
        steps = [value for block in self.ms for value in block]
        return self.workload.batch * 1e3 / statistics.median(steps) if steps else None


@dataclass(frozen=True, slots=True)
class SweepJournal:
    """The points of one session, written at once when it has ended: a session is done or never was."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    points: tuple[SweepPoint, ...]


def percent(sparsity: float) -> str:
    """0.6 -> "60 %", 0.625 -> "62.5 %"."""
    return f"{100 * sparsity:.4g} %"
