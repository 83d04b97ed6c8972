"""The numbers of a result that a history of releases follows, each with its unit and which way is better.

A name is a series: it must not change from one release to the next. It carries the first digits of the machine's
fingerprint, because a release's milliseconds on one machine say nothing about another's: on a new machine a new
series begins, and no tool that compares by name can call that a regression.
"""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from tailcut.bench.text import one_line
from tailcut.results import BenchResult, EngineResult, Ratio, Side

_DIGITS = 8  # of the fingerprint: a team has dozens of machines, not thousands


@dataclass(frozen=True, slots=True)
class Number:
    """One figure. `low` and `high` bound it where its noise is known; `engine` is "" for facts of the packages."""

    key: str  # letters and underscores, the same for every engine
    name: str
    unit: str
    value: float
    bigger_is_better: bool
    engine: str = ""
    low: float | None = None
    high: float | None = None


def machine_id(result: BenchResult) -> str:
    return one_line(result.machine.fingerprint)[:_DIGITS] or "unknown"


def numbers(result: BenchResult) -> tuple[Number, ...]:
    """Everything finite that was measured, in a fixed order; an engine that was not measured gives nothing."""
    found = [number for engine in result.engines for number in _of_engine(engine)]
    found += _of_packages(result)
    return tuple(number for number in found if math.isfinite(number.value))


def _of_engine(engine: EngineResult) -> Iterator[Number]:
    name = one_line(engine.engine)
    if engine.decode_speedup is not None:
        yield _ratio("decode_speedup", "decode speedup", engine.decode_speedup, name)
    if engine.prefill_speedup is not None:
        yield _ratio("prefill_speedup", "prefill speedup", engine.prefill_speedup, name)
    for side in (engine.dense, engine.sparse):
        if side is not None:
            yield from _of_side(side, name)


def _ratio(key: str, name: str, ratio: Ratio, engine: str) -> Number:
    return Number(key, name, "x", ratio.value, True, engine, ratio.low, ratio.high)


def _of_side(side: Side, engine: str) -> Iterator[Number]:
    role = side.role
    yield Number(f"{role}_tokens_per_second", f"{role} tokens/s", "tokens/s", side.tokens_per_second, True, engine)
    for key, name, blocks in (
        ("token_ms", "time per token", side.decode_ms),
        ("first_token_ms", "time to first token", side.prefill_ms),
    ):
        samples = [value for block in blocks for value in block]
        if samples:
            yield Number(f"{role}_{key}", f"{role} {name}", "ms", statistics.median(samples), False, engine)
    yield Number(f"{role}_peak_memory_mb", f"{role} peak memory", "MB", side.peak_rss_bytes / 1e6, False, engine)


def _of_packages(result: BenchResult) -> Iterator[Number]:
    for role, facts in (("dense", result.dense), ("sparse", result.sparse)):
        yield Number(f"{role}_package_mb", f"{role} package", "MB", facts.bytes_on_disk / 1e6, False)
    yield Number("sparsity", "sparsity of the block linears", "fraction", result.sparse.sparsity, True)
    for place, quality in enumerate(result.quality):
        key = "perplexity_ratio" + (f"_{place + 1}" if place else "")
        name = f"perplexity over dense on {one_line(quality.text)}"
        ratio = quality.ratio
        yield Number(key, name, "x", ratio.value, False, "", ratio.low, ratio.high)
