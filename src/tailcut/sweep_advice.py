"""What a sweep's points say, in sentences: only what intervals that do not overlap allow.

Two points differ on an axis (speed, perplexity) only if one interval lies wholly above the other; else they "cannot be
told apart". A point is better than another if it wins one axis and wins or exactly ties the other. Intervals are of
single points, 95 % unless asked otherwise: two that just miss each other differ at about the half-per-cent level, and a
grid of many pairs will hold a chance finding now and then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal

from tailcut.results import Ratio
from tailcut.sweep_points import SweepPoint, percent

Relation = Literal["above", "below", "unclear"]
_SHOWN: Final = 6
_FAMILIES: Final = ("float32", "float16", "bfloat16", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Advice:
    """Sentences: each family of cut models beside each dense baseline, then what to deploy."""

    findings: tuple[str, ...]  # with "On this machine …" where one side is better
    recommendation: tuple[str, ...]
    front: tuple[str, ...]  # labels of the points that nothing measured is better than


def advise(points: Sequence[SweepPoint], max_ppl_ratio: float | None = None) -> Advice:
    """Everything that can be said of points of one machine and one model."""
    measured = [point for point in points if point.speedup is not None]
    front = undominated(measured)
    findings = [sentence for family in families(measured) for sentence in _beside_dense(family, baselines(measured))]
    return Advice(
        tuple(findings), tuple(_recommend(measured, front, max_ppl_ratio)), tuple(point.label for point in front)
    )


def relation(one: Ratio | None, other: Ratio | None) -> Relation:
    """Where one interval lies beside another; unclear where they touch or one is missing."""
    if one is None or other is None:
        return "unclear"
    return "above" if one.low > other.high else "below" if one.high < other.low else "unclear"


def better(one: SweepPoint, other: SweepPoint) -> bool:
    """Clearly faster or clearly lower in perplexity, and on the other axis clearly so or exactly equal."""
    faster = relation(one.speedup, other.speedup) == "above"
    closer = relation(one.perplexity_ratio, other.perplexity_ratio) == "below"
    same_quality = one.perplexity_ratio is not None and one.perplexity_ratio == other.perplexity_ratio
    return (faster and (closer or same_quality)) or (closer and one.speedup == other.speedup)


def undominated(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """The points that no other is better than, fastest first; points without a perplexity take no part."""
    judged = [point for point in points if point.perplexity_ratio is not None]
    kept = [point for point in judged if not any(better(other, point) for other in judged)]
    return sorted(kept, key=_speed, reverse=True)


def families(points: Sequence[SweepPoint]) -> list[list[SweepPoint]]:
    """Cut points that differ in sparsity only, in its order; an N:M pattern stands alone."""

    def kind(point: SweepPoint) -> tuple[str, str, str, str]:
        return (point.allocator or "", point.pattern or "", point.weights, point.engine)

    cut = sorted((point for point in points if not point.dense), key=lambda point: (*kind(point), point.sparsity))
    return [list(group) for _, group in groupby(cut, kind)]


def baselines(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    """The fastest dense point of each precision."""
    dense = [point for point in points if point.dense]
    best = (max((point for point in dense if point.weights == name), key=_speed, default=None) for name in _FAMILIES)
    return [point for point in best if point is not None]


def _speed(point: SweepPoint) -> float:
    return point.speedup.value if point.speedup else 0.0


def _beside_dense(family: Sequence[SweepPoint], dense: Sequence[SweepPoint]) -> list[str]:
    return [_crossing(family, point) for point in dense]


def _crossing(family: Sequence[SweepPoint], dense: SweepPoint) -> str:
    """One sentence on speed, one on perplexity, and what follows, each naming only measured sparsities."""
    speed = _split(family, lambda point: relation(point.speedup, dense.speedup))
    words = {"below": "slower", "unclear": "cannot be told apart", "above": "faster"}
    text = f"{family_name(family)} beside {dense.label}: {_listing(speed, words)}"
    judged = [point for point in family if point.perplexity_ratio and dense.perplexity_ratio]
    if judged:
        near = _split(judged, lambda point: relation(point.perplexity_ratio, dense.perplexity_ratio))
        words = {"above": "higher", "unclear": "cannot be told apart", "below": "lower"}
        text += f"; perplexity {_listing(near, words)}"
    return f"{text}.{_verdict(family, dense)}"


def _split(family: Sequence[SweepPoint], of: Callable[[SweepPoint], Relation]) -> dict[Relation, list[SweepPoint]]:
    found: dict[Relation, list[SweepPoint]] = {}
    for point in family:
        found.setdefault(of(point), []).append(point)
    return found


def _listing(split: dict[Relation, list[SweepPoint]], words: dict[str, str]) -> str:
    return ", ".join(f"{word} at {_amounts(split[key])}" for key, word in words.items() if key in split)


def _amounts(points: Sequence[SweepPoint]) -> str:
    names = [point.pattern or percent(point.sparsity) for point in points]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def family_name(family: Sequence[SweepPoint]) -> str:
    """ "alpha int4 (tailcut)", "uniform 2:4 float32 (tailcut)"."""
    first = family[0]
    kind = f"{first.allocator} {first.pattern}" if first.pattern else first.allocator
    return f"{kind} {first.weights} ({first.engine})"


def _verdict(family: Sequence[SweepPoint], dense: SweepPoint) -> str:
    """ "On this machine dense int4 is better at 50 % and 60 %", where it is so."""
    losing = [point for point in family if better(dense, point)]
    winning = [point for point in family if better(point, dense)]
    found = []
    if losing:
        found.append(f" On this machine dense {dense.weights} is better {_range(losing, family)}.")
    if winning:
        found.append(f" On this machine the cut model is better {_range(winning, family)}.")
    return "".join(found)


def _range(points: Sequence[SweepPoint], family: Sequence[SweepPoint]) -> str:
    """Up to a sparsity, from one on, or one by one: as the measured points allow."""
    if len(points) == len(family) > 1:
        return f"at every measured sparsity ({_amounts(points)})"
    if len(points) > 1 and points == family[: len(points)]:
        return f"up to {_amounts(points[-1:])}, and not clearly so at {_amounts(family[len(points) :][:1])}"
    if len(points) > 1 and points == family[-len(points) :]:
        return f"from {_amounts(points[:1])} on"
    return f"at {_amounts(points)}"


def _recommend(points: Sequence[SweepPoint], front: Sequence[SweepPoint], limit: float | None) -> list[str]:
    if not front:
        return ["No point has both a speed and a perplexity, so nothing is recommended."]
    if limit is None:
        return _tour(front)
    fit = [point for point in front if point.perplexity_ratio and point.perplexity_ratio.high <= limit]
    if not fit:
        return [f"No point keeps its perplexity below {limit:g} times the dense model's with its whole interval."]
    best, rest = fit[0], fit[1:]
    ties = [point for point in rest if relation(point.speedup, best.speedup) == "unclear"]
    head = f"Within {limit:g} times the dense perplexity: {_named(best)}"
    if not ties:
        return [f"{head} is the fastest."]
    others = "; ".join(_named(point) for point in ties)
    simplest = next((point for point in (best, *ties) if point.dense), None)
    more = f" {simplest.label} is the one without any cutting." if simplest else ""
    return [f"{head} and {others} cannot be told apart in speed; more rounds or a quieter machine would decide.{more}"]


def _tour(front: Sequence[SweepPoint]) -> list[str]:
    """Without a limit there is no best: what nothing is better than, by speed."""
    named = [f"{_named(point)}{_next(front, place)}" for place, point in enumerate(front[:_SHOWN])]
    if len(front) > _SHOWN:
        named.append(f"and {len(front) - _SHOWN} slower ones, marked * in the table")
    head = (
        "Nothing measured is better than"
        if len(named) == 1
        else "Nothing measured is better than these, fastest first:"
    )
    return [f"{head} {'; '.join(named)}.", "State --max-ppl-ratio to have one of them recommended."]


def _next(front: Sequence[SweepPoint], place: int) -> str:
    """Where the next one of the list is not clearly slower, say so."""
    after = front[place + 1] if place + 1 < len(front) else None
    if after is None or relation(front[place].speedup, after.speedup) == "above":
        return ""
    return " (not to be told apart in speed from the next)"


def _named(point: SweepPoint) -> str:
    speed, ratio = point.speedup, point.perplexity_ratio
    parts = [f"{speed.value:.2f}x the speed" if speed else "", f"perplexity x{ratio.value:.3f}" if ratio else ""]
    return f"{point.label}, {', '.join(part for part in parts if part)}"
