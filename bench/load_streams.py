"""One stream count: users who ask again at once, or requests that arrive at random moments, dense beside sparse.

A visit is the time in which `requests` requests a stream end. In a closed loop both sides then do the same work in the
same order whatever their speed, so visits differ in time alone. The first requests, with which the loop fills, are not kept.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np

from tailcut.bench.load_sides import Sides, buffer
from tailcut.bench.load_values import PERCENTILES, EngineLoad, Latency, LoadPlan, LoadPoint, LoadSide, Visit, Visits
from tailcut.bench.pair import ROLES, Role
from tailcut.bench.stats import median_ratio
from tailcut.bench.worker import WorkerError
from tailcut.results import Ratio

_NOISY: Final = 0.10  # of the machine, used by others, is worth a caution
_FEW: Final = 100  # samples below which a 99th percentile is little more than the largest one


def measure(sides: Sides, count: int) -> LoadPoint:
    """The point of `count` streams."""
    if reason := sides.lacking(_needed(sides, count), f"the caches of {count} streams"):
        return LoadPoint(count, reason)
    found: dict[Role, list[tuple[dict[str, Any], tuple[float, ...], tuple[float, ...]]]] = {r: [] for r in ROLES}
    for role in ROLES:
        _serve(sides, role, count, fresh=True)

    def visit(role: Role) -> str:
        found[role].append(_serve(sides, role, count, fresh=False))
        body = found[role][-1][0]
        return f"{body['tokens'] / body['seconds']:.1f} tokens/s"

    shares = sides.blocks(f"{count} streams", visit)
    visits = {role: _visits(found[role], [block[role] for block in shares]) for role in ROLES}
    return _point(count, str(found["sparse"][0][0]["sharing"]), visits, sides.plan)


def _serve(
    sides: Sides, role: Role, count: int, *, fresh: bool
) -> tuple[dict[str, Any], tuple[float, ...], tuple[float, ...]]:
    """One visit: what the worker says of it, times to first tokens, times between tokens (ms)."""
    plan, worker = sides.plan, sides.workers[role]
    body, arrays = worker.ask(
        "serve",
        fresh=fresh,
        streams=count,
        prompt_tokens=plan.prompt_tokens,
        new_tokens=plan.new_tokens,
        vocabulary=sides.session.sizes.vocab,
        rate=plan.rate,
        seed=plan.seed,
        requests=count if fresh else count * plan.requests,
    )
    first, gaps = (_times(arrays[name]) for name in ("ttft_ms", "itl_ms"))
    sound = all(np.isfinite(value) and value > 0 for value in (*first, *gaps, body["seconds"]))
    if not sound or not body["tokens"]:
        raise WorkerError(f"engine {sides.name} returned no usable times of {count} streams")
    return body, first, gaps


def _times(values: Any) -> tuple[float, ...]:  # noqa: ANN401 an array from a frame
    return tuple(round(float(value), 4) for value in values)  # 0.1 microseconds


def _visits(
    found: Sequence[tuple[dict[str, Any], tuple[float, ...], tuple[float, ...]]], shares: Sequence[Sequence[float]]
) -> Visits:
    flat = [
        Visit(
            seconds=float(body["seconds"]),
            tokens=int(body["tokens"]),
            requests=int(body["requests"]),
            running=float(body["running"]),
            waiting=int(body["waiting"]),
            others_cpu_share=share,
            ttft_ms=first,
            itl_ms=gaps,
        )
        for (body, first, gaps), share in zip(found, chain.from_iterable(shares), strict=True)
    ]
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _point(count: int, sharing: str, visits: dict[Role, Visits], plan: LoadPlan) -> LoadPoint:
    made = {role: _side(visits[role]) for role in ROLES}
    per_token = [[[visit.ms_per_token for visit in block] for block in visits[role]] for role in ROLES]
    return LoadPoint(
        streams=count,
        sharing=sharing,
        dense=made["dense"],
        sparse=made["sparse"],
        throughput=median_ratio(per_token[0], per_token[1], confidence=plan.confidence, seed=plan.seed),
        ttft=_ratios([[_first(block) for block in visits[role]] for role in ROLES], plan),
        itl=_ratios([[_gaps(block) for block in visits[role]] for role in ROLES], plan),
    )


def _first(visits: Iterable[Visit]) -> tuple[float, ...]:
    return tuple(chain.from_iterable(visit.ttft_ms for visit in visits))


def _gaps(visits: Iterable[Visit]) -> tuple[float, ...]:
    return tuple(chain.from_iterable(visit.itl_ms for visit in visits))


def _side(visits: Visits) -> LoadSide:
    flat = tuple(chain.from_iterable(visits))
    return LoadSide(
        tokens_per_second=sum(visit.tokens for visit in flat) / sum(visit.seconds for visit in flat),
        ttft_ms=Latency.of(_first(flat)),
        itl_ms=Latency.of(_gaps(flat)),
        visits=visits,
    )


def _ratios(samples: Sequence[Sequence[tuple[float, ...]]], plan: LoadPlan) -> dict[str, Ratio]:
    """Dense over sparse of each percentile: a block's percentiles are a pair; blocks [side][block][samples]."""
    if not all(block for side in samples for block in side):
        return {}
    found = {}
    for percent in PERCENTILES:
        sides = [[[float(np.percentile(block, percent))] for block in side] for side in samples]
        found[f"p{percent}"] = median_ratio(sides[0], sides[1], confidence=plan.confidence, seed=plan.seed)
    return found


def _needed(sides: Sides, count: int) -> int:
    """Bytes of both sides' caches: `count` sequences, and the prompt that is run beside them."""
    positions = sides.plan.positions
    each = 1 if all(sides.in_place(role) for role in ROLES) else 2  # a growing cache is there twice for a moment
    return sum(sides.cache_bytes(role, count * positions * each + buffer(positions)) for role in ROLES)


def cautions(engine: EngineLoad, plan: LoadPlan) -> tuple[str, ...]:
    """Sentences that belong beside the numbers."""
    found: list[str] = []
    for point in engine.streams:
        for role, side in (("dense", point.dense), ("sparse", point.sparse)):
            if side is None:
                continue
            flat = tuple(chain.from_iterable(side.visits))
            loud = sum(visit.others_cpu_share > _NOISY for visit in flat)
            if loud:
                found.append(f"{loud} of {len(flat)} {role} visits at {point.streams} streams shared the CPUs")
            if plan.rate is not None and flat[-1].waiting > 2 * point.streams:
                found.append(
                    f"{plan.rate:g} requests a second are more than the {role} side serves in {point.streams} slots: "
                    f"{flat[-1].waiting} were waiting at the end, so its times to first tokens grow with the run"
                )
    few = [point.streams for point in engine.streams if point.sparse and _samples(point.sparse) < _FEW]
    if few:
        listed = ", ".join(map(str, few))
        found.append(f"fewer than {_FEW} first tokens at {listed} streams: their p99 is little more than the largest")
    return tuple(found)


def _samples(side: LoadSide) -> int:
    return side.ttft_ms.samples if side.ttft_ms else 0
