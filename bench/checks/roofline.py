"""Whether the times can be true, and whether the dense baseline is a fair one, by the bytes that a step must read.

A share of the memory bandwidth above 1 (and some slack, the peak is measured too) is a broken clock or a step that did not
read its weights. A dense side far below 1 is a straw man: any speedup over it says little. A speedup above the ratio of
bytes says the same. Weights that nearly fit in the cache have no share; that is inconclusive, never a pass.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Positive, Subject
from tailcut.bench.checks._intervals import inverse, median_ms, scaled
from tailcut.bench.checks._judging import missing, timed, undecided
from tailcut.bench.checks._seeded import seeded_result
from tailcut.codec import FORBID_EXTRA
from tailcut.results import Check, Ratio, Side

PER_ENGINE: Final = True


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    max_bandwidth_share: Annotated[
        Positive | None,
        Field(
            description="Bytes a second of either side over the measured bandwidth, at most; 1.15 leaves room for noise."
        ),
    ] = None
    min_dense_bandwidth_share: Annotated[
        Positive | None, Field(description="Share of the measured bandwidth that the dense baseline reaches, at least.")
    ] = None
    max_speedup_over_bytes: Annotated[
        Positive | None, Field(description="Decode speedup over the ratio of bytes a token, at most.")
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    found: list[Check] = []
    if limits.max_bandwidth_share is not None:
        found += [_share(subject, role, limits.max_bandwidth_share, at_least=False) for role in ("dense", "sparse")]
    if limits.min_dense_bandwidth_share is not None:
        found.append(_share(subject, "dense", limits.min_dense_bandwidth_share, at_least=True))
    if limits.max_speedup_over_bytes is not None:
        found.append(_over_bytes(subject, limits.max_speedup_over_bytes))
    return tuple(found)


def _share(subject: Subject, role: str, limit: float, *, at_least: bool) -> Check:
    name = f"bandwidth share of the {role} side"
    side = subject.measured.dense if role == "dense" else subject.measured.sparse
    if side is None:
        return missing(name, limit)
    if side.roofline.share is None:
        return undecided(name, f"{name}: its weights nearly fit in cache, memory does not bound them", limit)
    share = _measured_share(subject, side, from_memory=not at_least)
    return timed(subject, "decode", name, share, limit, at_least=at_least)


def _measured_share(subject: Subject, side: Side, *, from_memory: bool) -> Ratio | None:
    """From the samples, not from what the file says. from_memory: without what the last-level cache could have given."""
    result = subject.result
    device = side.evidence.get("device_gb_per_s")
    best = float(device) if device else max((point.best_gb_per_s for point in result.bandwidth), default=0.0)
    if best <= 0:
        return None
    cache = int(side.evidence.get("device_l2_bytes") or 0) if device else result.machine.l3_bytes
    read = side.roofline.bytes_per_token - (cache if from_memory else 0)
    return scaled(inverse(median_ms(subject, side, "decode"), 1e3), max(read, 1) / 1e9 / best)


def _over_bytes(subject: Subject, limit: float) -> Check:
    name, engine = "speedup over the byte ratio", subject.measured
    if engine.byte_ratio is None or engine.byte_ratio <= 0 or engine.decode_speedup is None:
        return missing(name, limit)
    value = scaled(engine.decode_speedup, 1 / engine.byte_ratio)
    return timed(subject, "decode", name, value, limit, at_least=False)


def cases(folder: Path) -> tuple[Case, ...]:
    honest = seeded_result(speedup=2.0)  # 100 MB in 10 ms at 20 GB/s: half the bandwidth
    broken = replace(honest, bandwidth=(replace(honest.bandwidth[0], best_gb_per_s=5.0),))
    edge = replace(honest, bandwidth=(replace(honest.bandwidth[0], best_gb_per_s=10.0),))
    good, wrong, close = (Subject(result, "seeded") for result in (honest, broken, edge))
    most, least, ratio = (
        {"max_bandwidth_share": 1.15},
        {"min_dense_bandwidth_share": 0.4},
        {"max_speedup_over_bytes": 1.1},
    )
    fast, limit = (Subject(seeded_result(speedup=speedup), "seeded") for speedup in (3.0, 2.2))
    return (
        Case("a rate of twice the machine's bandwidth fails", wrong, most, "fail"),
        Case("a rate of half the bandwidth passes", good, most, "pass"),
        Case("a rate at the limit is inconclusive", close, {"max_bandwidth_share": 1.0}, "inconclusive"),
        Case("a dense baseline at half the bandwidth fails where 80 % are required", good, least | _FAIR, "fail"),
        Case("a dense baseline at half the bandwidth passes 40 %", good, least, "pass"),
        Case("a speedup of 3.0x where the bytes allow 2.0x fails", fast, ratio, "fail"),
        Case(
            "a speedup of 2.0x where the bytes allow 2.0x passes", good, ratio | {"max_speedup_over_bytes": 1.2}, "pass"
        ),
        Case("a speedup 10 % above the bytes' is inconclusive", limit, ratio, "inconclusive"),
    )


_FAIR: Final = {"min_dense_bandwidth_share": 0.8}
