"""One stream count: users who ask again at once, or requests that arrive at random moments, dense beside sparse.

A visit is the time in which `requests` requests a stream end. In a closed loop both sides then do the same work in the
same order whatever their speed, so visits differ in time alone. The first requests, with which the loop fills, are not kept.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np

from tailcut.bench.load_sides import Block, Sides, buffer, disturbance
from tailcut.bench.load_values import (
    PERCENTILES,
    EngineLoad,
    Latency,
    LoadPlan,
    LoadPoint,
    LoadSide,
    Visit,
    Visits,
    quiet,
    stated,
)
from tailcut.bench.stats import median_ratio
from tailcut.bench.turns import ROLES, Role, too_loud
from tailcut.bench.worker import WorkerError
from tailcut.results import Ratio

_FEW: Final = 100  # samples below which a 99th percentile is little more than the largest one


class _Answer(NamedTuple):
    """One `serve`: what the worker says of it, times to first tokens, times between tokens (ms)."""

    body: dict[str, Any]
    first: tuple[float, ...]
    gaps: tuple[float, ...]


def measure(sides: Sides, count: int) -> LoadPoint:
    """The point of `count` streams."""
    if reason := sides.lacking(_needed(sides, count), f"the caches of {stated(count)}"):
        return LoadPoint(count, reason)
    answers: dict[Role, list[_Answer]] = {role: [] for role in ROLES}
    for role in ROLES:
        _serve(sides, role, count, fresh=True)

    def visit(role: Role) -> str:
        answers[role].append(_serve(sides, role, count, fresh=False))
        body = answers[role][-1].body
        return f"{body['tokens'] / body['seconds']:.1f} tokens/s"

    blocks = sides.blocks(stated(count), visit)
    visits = {role: _visits(answers[role], [block.others[role] for block in blocks]) for role in ROLES}
    return _point(count, str(answers["sparse"][0].body["sharing"]), visits, blocks, sides.plan)


def _serve(sides: Sides, role: Role, count: int, *, fresh: bool) -> _Answer:
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
    worker.rest()  # threads that spin after their work disturb nobody
    first, gaps = (_times(arrays[name]) for name in ("ttft_ms", "itl_ms"))
    sound = all(np.isfinite(value) and value > 0 for value in (*first, *gaps, body["seconds"]))
    if not sound or not body["tokens"]:
        raise WorkerError(f"engine {sides.name} returned no usable times of {stated(count)}")
    return _Answer(body, first, gaps)


def _times(values: Any) -> tuple[float, ...]:  # noqa: ANN401 an array from a frame
    return tuple(round(float(value), 4) for value in values)  # 0.1 microseconds


def _visits(answers: Sequence[_Answer], others: Sequence[tuple[float, ...]]) -> Visits:
    """`others`: their share of the CPUs during this side's visits, by block."""
    shares = [share for block in others for share in block]
    flat = [
        Visit(
            seconds=float(answer.body["seconds"]),
            tokens=int(answer.body["tokens"]),
            requests=int(answer.body["requests"]),
            running=float(answer.body["running"]),
            waiting=int(answer.body["waiting"]),
            others_cpu_share=share,
            ttft_ms=answer.first,
            itl_ms=answer.gaps,
        )
        for answer, share in zip(answers, shares, strict=True)
    ]
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _point(count: int, sharing: str, visits: dict[Role, Visits], blocks: Sequence[Block], plan: LoadPlan) -> LoadPoint:
    reasons = tuple(block.reason for block in blocks)
    loud = too_loud([bool(reason) for reason in reasons])
    kept = {role: quiet(visits[role], reasons) if not loud else visits[role] for role in ROLES}
    per_token = [[[visit.ms_per_token for visit in block] for block in kept[role]] for role in ROLES]
    return LoadPoint(
        streams=count,
        sharing=sharing,
        dense=_side(visits["dense"], kept["dense"]),
        sparse=_side(visits["sparse"], kept["sparse"]),
        disturbed=reasons,
        loud=loud,
        throughput=median_ratio(per_token[0], per_token[1], confidence=plan.confidence, seed=plan.seed),
        ttft=_ratios([[_first(block) for block in kept[role]] for role in ROLES], plan),
        itl=_ratios([[_gaps(block) for block in kept[role]] for role in ROLES], plan),
    )


def _first(visits: Iterable[Visit]) -> tuple[float, ...]:
    return tuple(chain.from_iterable(visit.ttft_ms for visit in visits))


def _gaps(visits: Iterable[Visit]) -> tuple[float, ...]:
    return tuple(chain.from_iterable(visit.itl_ms for visit in visits))


def _side(visits: Visits, kept: Visits) -> LoadSide:
    flat = tuple(chain.from_iterable(kept))
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
        bad = sum(bool(reason) for reason in point.disturbed)
        if bad:
            found.append(disturbance(stated(point.streams), len(point.disturbed), bad, loud=point.loud))
        if plan.rate is not None:
            found += _outrun(point, plan.rate)
    few = [point.streams for point in engine.streams if point.sparse and _samples(point.sparse) < _FEW]
    if few:
        listed = ", ".join(map(str, few))
        found.append(f"fewer than {_FEW} first tokens at {listed} streams: their p99 is little more than the largest")
    return tuple(found)


def _outrun(point: LoadPoint, rate: float) -> list[str]:
    sides = [(role, side.visits[-1][-1].waiting) for role, side in _roles(point) if side is not None]
    return [
        f"a rate of {rate:g} a second is more than the {role} side serves with {stated(point.streams)}: {waiting} requests "
        "were waiting at the end, so its times to first tokens grow with the run"
        for role, waiting in sides
        if waiting > 2 * point.streams
    ]


def _roles(point: LoadPoint) -> tuple[tuple[Role, LoadSide | None], ...]:
    return ("dense", point.dense), ("sparse", point.sparse)


def _samples(side: LoadSide) -> int:
    return side.ttft_ms.samples if side.ttft_ms else 0
