"""A made-up load measurement whose truth is known: what the self-test of the checks under load is made of."""

from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np

from tailcut.bench.checks._seeded import seeded_result
from tailcut.bench.load_values import (
    ContextPoint,
    EngineLoad,
    Latency,
    LoadPlan,
    LoadPoint,
    LoadResult,
    LoadSide,
    Visit,
)
from tailcut.bench.stats import median_ratio
from tailcut.results import Blocks

STREAMS: Final = 4
CONTEXT: Final = 2048
# of the dense side: 10 ms for a token of all streams, 300 ms to a first and 30 ms to a next one, half as long again as the
# median for one in twenty; 10 ms a step
_SPREAD: Final = np.log(1.5) / 1.645
DENSE_RATE, DENSE_TTFT_P95_MS, DENSE_ITL_P95_MS, DENSE_STEP_MS = 100.0, 450.0, 45.0, 10.0
_BLOCKS: Final = 8


@lru_cache(maxsize=16)
def seeded_load(*, speedup: float, requests: int = 5, loud: bool = False, seed: int = 11) -> LoadResult:
    """8 blocks at 4 streams and at context 2048; blocks differ by 5 % for both sides together and by 2 % for each.

    speedup: of every figure. requests: of a stream in a visit. loud: all blocks were disturbed. 8 streams found no memory.
    """
    rng = np.random.default_rng(seed)
    mood = np.exp(rng.normal(0, 0.05, _BLOCKS))
    dense, sparse = (_side(factor * mood, requests * STREAMS, rng) for factor in (1.0, 1.0 / speedup))
    steps, others = (_steps(factor * mood, rng) for factor in (1.0, 1.0 / speedup))
    per_token = [[[visit.ms_per_token for visit in block] for block in side.visits] for side in (dense, sparse)]
    disturbed = ("seeded",) * _BLOCKS if loud else ("",) * _BLOCKS
    throughput = median_ratio(per_token[0], per_token[1])
    point = LoadPoint(STREAMS, "", "seeded", dense, sparse, disturbed, loud, throughput, {}, {})
    context = ContextPoint(CONTEXT, "", steps, others, median_ratio(steps, others), 2.0, 0.1)
    engine = EngineLoad(
        "seeded", "measured", streams=(point, LoadPoint(2 * STREAMS, "it needs more memory")), contexts=(context,)
    )
    base = seeded_result(speedup=2.0)
    plan = LoadPlan(streams=(STREAMS, 2 * STREAMS), contexts=(CONTEXT,), requests=requests, blocks=_BLOCKS)
    return LoadResult(base.machine, plan, base.dense, base.sparse, (engine,))


def of_another_machine(load: LoadResult) -> LoadResult:
    return replace(load, machine=replace(load.machine, fingerprint="another"))


def of_another_package(load: LoadResult) -> LoadResult:
    return replace(load, sparse=replace(load.sparse, sha256="another"))


def _side(factors: np.ndarray[tuple[int], np.dtype[np.float64]], requests: int, rng: np.random.Generator) -> LoadSide:
    blocks = [
        tuple(_visit(float(factor), requests, rng) for _ in range(2))
        for factor in factors * np.exp(rng.normal(0, 0.02, _BLOCKS))
    ]
    visits = tuple((first, second) for first, second in blocks)
    flat = [visit for block in visits for visit in block]
    rate = sum(visit.tokens for visit in flat) / sum(visit.seconds for visit in flat)
    ttft, itl = ([ms for visit in flat for ms in getattr(visit, name)] for name in ("ttft_ms", "itl_ms"))
    return LoadSide(rate, Latency.of(ttft), Latency.of(itl), visits)


def _visit(factor: float, requests: int, rng: np.random.Generator) -> Visit:
    tokens = 64 * requests
    first, gaps = (
        tuple(float(ms) for ms in factor * median * np.exp(rng.normal(0, _SPREAD, count)))
        for median, count in ((DENSE_TTFT_P95_MS / 1.5, requests), (DENSE_ITL_P95_MS / 1.5, 10 * requests))
    )
    return Visit(tokens / DENSE_RATE * factor, tokens, requests, float(STREAMS), 0, 0.0, first, gaps)


def _steps(factors: np.ndarray[tuple[int], np.dtype[np.float64]], rng: np.random.Generator) -> Blocks:
    made = (
        DENSE_STEP_MS
        * factors[:, None]
        * np.exp(rng.normal(0, 0.02, (_BLOCKS, 1)) + rng.normal(0, 0.02, (_BLOCKS, 32)))
    )
    return tuple(tuple(float(ms) for ms in row) for row in made)
