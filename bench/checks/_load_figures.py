"""Figures of one point of a load measurement, each with its interval, from the raw samples of the blocks that count.

Ratios pair the two sides of every block, as `bench-load` states them (`load_streams`). A figure of the sparse side alone is
that of a typical block: the geometric mean over blocks, with Student's interval of the logarithms, which holds for as few as
three or four blocks. Percentiles of all blocks' samples together would be those of the worst block: no interval from a few
blocks covers them. Of a block's few samples numpy's default percentile is too small on average; taken is the one of Hyndman
and Fan (Sample Quantiles in Statistical Packages, 1996, definition 8), nearly free of that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tailcut.bench.checks._intervals import inverse, median, of_blocks
from tailcut.bench.load_values import ContextPoint, LoadPoint, LoadSide, Visit, stated
from tailcut.bench.stats import median_ratio
from tailcut.results import Ratio

PERCENT: Final = 95
FEWEST: Final = 20  # samples of a block, or none of them is one in twenty
_BLOCKS: Final = "two undisturbed blocks are needed for an interval: measure again with more --blocks"
Samples = Callable[[Visit], tuple[float, ...]]
Found = Ratio | str  # a sentence: why there is no figure


@dataclass(frozen=True, slots=True)
class Figure:
    """What is compared; `of` takes a point (of streams, or of contexts) and the interval's confidence."""

    name: str
    of: Callable[[Any, float], Found]
    at_least: bool
    unit: str = ""
    of_streams: bool = True

    def at(self, place: int) -> str:
        """The name at one stream count or context."""
        return f"{self.name} at {stated(place)}" if self.of_streams else f"{self.name} at context {place}"


def _throughput(point: LoadPoint, confidence: float) -> Found:
    blocks = [] if point.sparse is None else point.counted(point.sparse)
    rates = [sum(visit.tokens for visit in block) / sum(visit.seconds for visit in block) for block in blocks]
    return of_blocks(rates, confidence) or _BLOCKS


def _speedup(point: LoadPoint, confidence: float) -> Found:
    dense, sparse = (
        [[visit.ms_per_token for visit in block] for block in point.counted(side)] if side else []
        for side in (point.dense, point.sparse)
    )
    return median_ratio(dense, sparse, confidence=confidence) if min(len(dense), len(sparse)) > 1 else _BLOCKS


def _first(visit: Visit) -> tuple[float, ...]:
    return visit.ttft_ms


def _next(visit: Visit) -> tuple[float, ...]:
    return visit.itl_ms


def _percentile(samples: Samples) -> Callable[[LoadPoint, float], Found]:
    def of(point: LoadPoint, confidence: float) -> Found:
        blocks = _of_side(point, point.sparse, samples)
        if reason := _few(blocks):
            return reason
        return (
            of_blocks([float(np.percentile(block, PERCENT, method="median_unbiased")) for block in blocks], confidence)
            or _BLOCKS
        )

    return of


def _percentile_ratio(samples: Samples) -> Callable[[LoadPoint, float], Found]:
    def of(point: LoadPoint, confidence: float) -> Found:
        sides = [_of_side(point, side, samples) for side in (point.dense, point.sparse)]
        if reason := next(filter(None, map(_few, sides)), ""):
            return reason
        dense, sparse = ([[float(np.percentile(block, PERCENT))] for block in blocks] for blocks in sides)
        return inverse(median_ratio(dense, sparse, confidence=confidence)) or _BLOCKS

    return of


def _of_side(point: LoadPoint, side: LoadSide | None, samples: Samples) -> list[tuple[float, ...]]:
    """One side's samples of each block that counts."""
    return [samples(first) + samples(second) for first, second in point.counted(side)] if side else []


def _few(blocks: list[tuple[float, ...]]) -> str:
    if len(blocks) < 2:
        return _BLOCKS
    least = min(map(len, blocks))
    if least >= FEWEST:
        return ""
    return f"a block holds {least} samples, a {PERCENT}th percentile needs {FEWEST}: measure again with more --requests"


def _step(point: ContextPoint, confidence: float) -> Found:
    return median(point.sparse_ms, confidence, point.procedure) or "it holds no samples"


def _step_speedup(point: ContextPoint, confidence: float) -> Found:
    if not (point.dense_ms and point.sparse_ms):
        return "it holds no samples"
    return median_ratio(point.dense_ms, point.sparse_ms, confidence=confidence)


FIGURES: Final[Mapping[str, Figure]] = {
    "min_load_tokens_per_second": Figure("tokens per second", _throughput, at_least=True),
    "min_load_speedup": Figure("tokens per second over dense", _speedup, at_least=True),
    "max_load_ttft_p95_ms": Figure("p95 time to first token", _percentile(_first), at_least=False, unit=" ms"),
    "max_load_ttft_p95_ratio": Figure("p95 time to first token over dense", _percentile_ratio(_first), at_least=False),
    "max_load_itl_p95_ms": Figure("p95 time between tokens", _percentile(_next), at_least=False, unit=" ms"),
    "max_load_itl_p95_ratio": Figure("p95 time between tokens over dense", _percentile_ratio(_next), at_least=False),
    "max_context_tpot_ms": Figure("time per output token", _step, at_least=False, unit=" ms", of_streams=False),
    "min_context_speedup": Figure("decode speedup", _step_speedup, at_least=True, of_streams=False),
}
