"""One context length: the time of a decode step whose cache ends there, dense beside sparse.

Bytes of the cache grow with the context while those of the weights stay, so what sparse weights gain shrinks: `byte_ratio`
says how far the bytes alone let it.
"""

import json
from pathlib import Path

import numpy as np

from tailcut.bench.load_sides import Sides, buffer, disturbance
from tailcut.bench.load_values import ContextPoint, EngineLoad
from tailcut.bench.roofline import kv_bytes
from tailcut.bench.stats import median_ratio
from tailcut.bench.turns import ROLES, Role, Turns


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
    work = sides.plan.workload(context)
    tokens = np.ascontiguousarray(sides.session.pair.tokens[:, :context])
    timed = Turns(f"{sides.name}, context {context}", "decode", work, tokens, sides.workers, sides.report).run()
    dense, sparse = timed.ms("dense"), timed.ms("sparse")
    token = {role: sides.weight_bytes(role) + _cache_read(sides, role, context) for role in ROLES}
    return ContextPoint(
        context=context,
        dense_ms=dense,
        sparse_ms=sparse,
        speedup=median_ratio(dense, sparse, confidence=work.confidence, seed=work.seed),
        byte_ratio=token["dense"] / token["sparse"],
        cache_share=_cache_read(sides, "sparse", context) / token["sparse"],
        procedure=timed.procedure,
    )


def _cache_read(sides: Sides, role: Role, context: int) -> int:
    return kv_bytes(sides.session.sizes_of[role], sides.plan.workload(context), sides.cache(role))


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
        how = point.procedure
        if how is not None and (how.loud or how.discarded):
            what = f"context {point.context}"
            found.append(disturbance(what, how.measured_blocks, len(how.discarded), loud=how.loud))
    return tuple(found)
