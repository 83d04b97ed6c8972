"""Reading a load measurement that decides something: what the codec cannot know of it is checked here, once.

As for a result (`result_file`): refused is what no `bench-load` writes, and any figure that a report would show although the
samples beside it say another. The gate itself goes by the samples.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from tailcut import codec
from tailcut.bench.load_values import ContextPoint, EngineLoad, Latency, LoadPoint, LoadResult, LoadSide, Visit, stated
from tailcut.bench.result_file import head_faults, ratio_faults, stated_faults
from tailcut.errors import InputError
from tailcut.results import Blocks


def read_load(path: Path) -> LoadResult:
    """A load measurement to be judged or shown; InputError names the file and what is wrong with it."""
    load = codec.load(LoadResult, path)
    wrong = next(_faults(load), None)
    if wrong is not None:
        raise InputError(f"{path}: {wrong}")
    return load


def _faults(load: LoadResult) -> Iterator[str]:
    yield from head_faults([engine.engine for engine in load.engines], load.dense, load.sparse)
    for engine in load.engines:
        yield from (f"engine {engine.engine}: {fault}" for fault in _engine_faults(engine))


def _engine_faults(engine: EngineLoad) -> Iterator[str]:
    for places in ([point.streams for point in engine.streams], [point.context for point in engine.contexts]):
        if len(set(places)) < len(places) or any(place < 1 for place in places):
            yield f"its points {places} are not different positive numbers"
    for point in engine.streams:
        yield from (f"{stated(point.streams)}: {fault}" for fault in _point_faults(point))
    for step in engine.contexts:
        yield from (f"context {step.context}: {fault}" for fault in _context_faults(step))


def _point_faults(point: LoadPoint) -> Iterator[str]:
    if point.dense is None or point.sparse is None:
        if not point.reason:
            yield "it holds neither a measurement of both sides nor a reason"
        return
    for role, side in (("dense", point.dense), ("sparse", point.sparse)):
        if not len(side.visits) == len(point.disturbed) > 0 or not point.counted(side):
            yield f"the {role} side has {len(side.visits)} blocks, {len(point.disturbed)} are said to be undisturbed or not"
            return
        yield from (f"the {role} side: {fault}" for fault in _side_faults(side, list(chain(*point.counted(side)))))
    if point.throughput is not None:
        dense, sparse = (
            [visit.ms_per_token for visit in chain(*point.counted(side))] for side in (point.dense, point.sparse)
        )
        yield from ratio_faults("the ratio of throughput", point.throughput)
        yield from stated_faults("the ratio of throughput", point.throughput.value, _median(dense) / _median(sparse))
    for what, ratios in (("first", point.ttft or {}), ("next", point.itl or {})):
        for name, ratio in ratios.items():
            yield from ratio_faults(f"the ratio of {what} tokens, {name[:9]!a},", ratio)


def _side_faults(side: LoadSide, counted: Sequence[Visit]) -> Iterator[str]:
    """counted: the visits of its undisturbed blocks."""
    for visit in chain(*side.visits):
        if not visit.seconds > 0 or visit.tokens < 1 or not all(ms > 0 for ms in (*visit.ttft_ms, *visit.itl_ms)):
            yield f"a visit of {visit.seconds} s and {visit.tokens} tokens, or a time in it, is not positive"
            return
    rate = sum(visit.tokens for visit in counted) / sum(visit.seconds for visit in counted)
    yield from stated_faults("its tokens a second", side.tokens_per_second, rate)
    yield from _latency_faults(
        "first tokens", side.ttft_ms, Latency.of(ms for visit in counted for ms in visit.ttft_ms)
    )
    yield from _latency_faults("next tokens", side.itl_ms, Latency.of(ms for visit in counted for ms in visit.itl_ms))


def _latency_faults(name: str, said: Latency | None, computed: Latency | None) -> Iterator[str]:
    if said is None:
        return
    if computed is None:
        yield f"times of {name} are stated without samples"
        return
    for share in ("p50", "p90", "p95", "p99"):
        value = getattr(said, share)
        if value is not None:
            yield from stated_faults(f"{share} of {name}", value, getattr(computed, share))


def _context_faults(point: ContextPoint) -> Iterator[str]:
    if [len(block) for block in point.dense_ms] != [len(block) for block in point.sparse_ms]:
        yield "the sides have different numbers of samples"
        return
    if len({len(block) for block in point.dense_ms}) > 1 or any(not block for block in point.dense_ms):
        yield "its blocks have different numbers of samples"
        return
    if not point.dense_ms and not point.reason:
        yield "it holds neither samples nor a reason"
    if not all(ms > 0 for ms in chain(*point.dense_ms, *point.sparse_ms)):
        yield "a time is not positive"
    elif point.speedup is not None and point.dense_ms:
        yield from ratio_faults("the speedup", point.speedup)
        yield from stated_faults("the speedup", point.speedup.value, _over(point.dense_ms, point.sparse_ms))
    elif point.speedup is not None:
        yield "a speedup is stated without samples"


def _over(top: Blocks, bottom: Blocks) -> float:
    return _median(list(chain(*top))) / _median(list(chain(*bottom)))


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))
