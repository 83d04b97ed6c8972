"""One context length: the time of a decode step whose cache ends there, dense beside sparse.

Bytes of the cache grow with the context while those of the weights stay, so what sparse weights gain shrinks: `byte_ratio`
says how far the bytes alone let it.
"""

import json
from pathlib import Path

import numpy as np

from tailcut.bench.load_sides import Sides, buffer
from tailcut.bench.load_values import ContextPoint, EngineLoad
from tailcut.bench.pair import ROLES, Role
from tailcut.bench.roofline import kv_bytes
from tailcut.bench.stats import median_ratio
from tailcut.bench.worker import WorkerError

_NOISY = 0.10  # of the machine, used by others, is worth a caution


def position_limit(package: Path) -> int | None:
    """Positions the model was made for, from config.json; None where it does not say."""
    try:
        config = json.loads((package / "config.json").read_bytes())
        config = config.get("text_config") or config
        found = [config.get(name) for name in ("max_position_embeddings", "n_positions")]
    except (OSError, ValueError, AttributeError):
        return None
    return next((limit for limit in found if isinstance(limit, int)), None)


def measure(sides: Sides, context: int) -> ContextPoint:
    """The point of one context length."""
    limit = position_limit(sides.session.packages["dense"])
    if limit is not None and context > limit:
        return ContextPoint(context, f"the model was made for {limit} positions")
    if reason := sides.lacking(sum(_needed(sides, role, context) for role in ROLES), f"caches of {context} positions"):
        return ContextPoint(context, reason)
    samples: dict[Role, list[float]] = {role: [] for role in ROLES}

    def visit(role: Role) -> str:
        times = _steps(sides, role, context)
        samples[role] += times
        return f"{np.median(times):.2f} ms"

    shares = sides.blocks(f"context {context}", visit)
    blocks = {role: tuple(map(tuple, np.reshape(samples[role], (sides.plan.blocks, -1)).tolist())) for role in ROLES}
    token = {role: sides.weight_bytes(role) + _cache_read(sides, role, context) for role in ROLES}
    return ContextPoint(
        context=context,
        dense_ms=blocks["dense"],
        sparse_ms=blocks["sparse"],
        speedup=median_ratio(blocks["dense"], blocks["sparse"], confidence=sides.plan.confidence, seed=sides.plan.seed),
        byte_ratio=token["dense"] / token["sparse"],
        cache_share=_cache_read(sides, "sparse", context) / token["sparse"],
        others_cpu_share=tuple(max(max(block[role]) for role in ROLES) for block in shares),
    )


def _steps(sides: Sides, role: Role, context: int) -> list[float]:
    """The times of one visit in ms."""
    plan, tokens = sides.plan, sides.session.pair.tokens
    settings = {"context": context, "steps": plan.steps, "warmup": plan.warmup_steps, "seed": plan.seed}
    _, arrays = sides.workers[role].ask("decode", {"tokens": np.ascontiguousarray(tokens[:, :context])}, **settings)
    times = np.asarray(arrays["ms"], np.float64)
    if times.size != plan.steps or not np.all(np.isfinite(times) & (times > 0)):
        raise WorkerError(f"engine {sides.name} returned no usable times at context {context}")
    return [float(value) for value in times]


def _cache_read(sides: Sides, role: Role, context: int) -> int:
    return kv_bytes(sides.session.sizes, sides.plan.workload(context), sides.cache(role))


def _needed(sides: Sides, role: Role, context: int) -> int:
    """Bytes beyond the weights, roughly: the cache; where it is concatenated also the prompt that fills it.

    Such a prompt is run whole: twice its cache, its logits [context, vocab], and one layer's scores [heads, context, context]
    before and after the softmax.
    """
    if sides.in_place(role):
        return sides.cache_bytes(role, buffer(context))
    sizes = sides.session.sizes
    heads = max(1, sizes.hidden // sizes.head_dim)
    return 2 * sides.cache_bytes(role, context) + 4 * context * sizes.vocab + 8 * heads * context**2


def cautions(engine: EngineLoad) -> tuple[str, ...]:
    """Sentences that belong beside the numbers."""
    found = []
    for point in engine.contexts:
        loud = sum(share > _NOISY for share in point.others_cpu_share)
        if loud:
            found.append(f"{loud} of {len(point.others_cpu_share)} blocks at context {point.context} shared the CPUs")
    return tuple(found)
