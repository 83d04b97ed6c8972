"""What an automatic choice chooses from: every allocator that works from the scores at hand, in several settings.

Which allocators can plan a ladder: of sparsities all that meet any sparsity exactly; of N:M patterns nm-mixed, and the
same ones but alpha, whose sparsities are rounded to patterns; of bits the rule that adds them to any plan.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product, zip_longest
from typing import Final

from tailcut import plugins
from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.compress import allocators
from tailcut.compress.allocators import Granularity, Settings, Solver, allocate, atp
from tailcut.compress.allocators._budget import origin
from tailcut.compress.searches._grid import Grid
from tailcut.errors import InputError

UNIFORM: Final = "uniform"
_TAUS: Final = (0.1, 0.2, 0.3, 0.5)
_SPREADS: Final = (0.02, 0.04, 0.08, 0.15, 0.2)
_BETAS: Final = 6  # of those that ATP's authors try, evenly chosen
_GRANULARITIES: Final[tuple[Granularity, ...]] = ("block", "mixed", "matrix")
_SOLVERS: Final[tuple[Solver, ...]] = ("qp", "lp")
_NONE: Final = Settings()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan and what it is called: the allocator and the settings that are not its defaults."""

    name: str
    allocation: Allocation
    first: bool = False  # of another kind than those before it: to be heard before any is heard in another setting


@dataclass(frozen=True, slots=True)
class _Way:
    """How a plan is had: what it is called, from which allocator, for which budget, with which settings."""

    name: str
    allocator: str
    budget: Budget
    settings: Settings
    first: bool = False


def candidates(
    scores: LayerScores, grid: Grid, settings: Settings = _NONE
) -> tuple[tuple[Candidate, ...], dict[str, str]]:
    """Plans that differ: uniform, every allocator's default, every metric's, then other settings; and what could not be had.

    The second value is allocator (and metric) -> why, one sentence. `settings`: see `Task`.
    """
    first = uniform(scores, grid)
    found = {_key(first.allocation): first}
    missing: dict[str, str] = {}
    for way in _ways(scores, grid, settings):
        try:
            allocation = grid.fitted(allocate(way.allocator, scores, way.budget, way.settings))
        except InputError as error:
            missing.setdefault(f"{way.name.split()[0]} {way.settings.metric or ''}".strip(), str(error))
            continue
        found.setdefault(_key(allocation), Candidate(way.name, allocation, way.first))
    return tuple(found.values()), missing


def uniform(scores: LayerScores, grid: Grid) -> Candidate:
    """The same for every matrix, or as near to that as the ladder comes."""
    if grid.ladder.kind == "nm":  # the mean need not be one pattern
        return Candidate(UNIFORM, Allocation(grid.plans(grid.even()), origin(UNIFORM, scores, grid.budget)), first=True)
    settings = Settings(bit_tau=0.0) if grid.ladder.kind == "bits" else Settings()
    return Candidate(UNIFORM, grid.fitted(allocate(UNIFORM, scores, grid.budget, settings)), first=True)


def _key(allocation: Allocation) -> tuple[object, ...]:
    return tuple((round(plan.pattern.sparsity, 9), plan.bits) for plan in allocation.plans.values())


def _ways(scores: LayerScores, grid: Grid, given: Settings) -> Iterator[_Way]:
    """Every default, every metric, then one more setting of each allocator in turn: cut short, all kinds were heard."""
    budget, metrics = grid.budget, [Settings(metric=metric) for metric in _metrics(scores)]
    if grid.ladder.kind == "bits":
        defaults_first = [Settings(), *metrics]
        for one in (*defaults_first, *(replace(one, tau=None, bit_tau=one.tau) for one in _shapes(scores))):
            yield _Way(_called("bits", one), UNIFORM, budget, one, first=one in defaults_first)
        return
    groups = _groups(scores, budget)
    defaults = [name for name in plugins.names(allocators.PACKAGE) if _plans_freely(name) and name != UNIFORM]
    if grid.ladder.kind == "nm":  # what alpha is to sparsities nm-mixed is to patterns
        groups = {"nm-mixed": groups.pop("alpha"), **groups}
        defaults = ["nm-mixed", *(name for name in defaults if name != "alpha")]
    told = [(name, Settings()) for name in defaults] + [(next(iter(groups)), one) for one in metrics]
    firsts = len(told)
    for turn in zip_longest(*groups.values()):
        told += [(name, one) for name, one in zip(groups, turn, strict=True) if one is not None]
    for place, (name, one) in enumerate(told):
        more, cut = one, replace(budget, pattern=None)
        if name == "nm-mixed":
            more, cut = replace(one, group=given.group, allow_dense=given.allow_dense), budget
        yield _Way(_called(name, one), name, cut, more, first=place < firsts)


def _groups(scores: LayerScores, budget: Budget) -> dict[str, list[Settings]]:
    """Other settings than the defaults, by allocator."""
    return {
        "alpha": _shapes(scores),
        "atp": [Settings(beta=beta) for beta in _betas(scores, budget)],
        "owl": [Settings(spread=spread) for spread in _SPREADS],
        "dlp": [Settings(spread=spread) for spread in _SPREADS],
        "als": [Settings(solver=how, granularity=what) for how, what in product(_SOLVERS, _GRANULARITIES)],
        "global": [Settings(metric="wanda")],
    }


def _plans_freely(name: str) -> bool:
    """Whether an allocator meets any sparsity to rounding, and needs nothing but scores."""
    steps = getattr(plugins.load(allocators.PACKAGE, name), "STEPS", False)
    return not steps and "cost" not in allocators.load(name).SETTINGS


def _metrics(scores: LayerScores) -> list[str]:
    """Every metric that all layers have."""
    known = (name.replace("-", "_") for name in plugins.names("tailcut.compress.metrics"))
    return [name for name in known if all(name in layer.values for layer in scores.layers)]


def _shapes(scores: LayerScores) -> list[Settings]:
    """Every metric at every tau and granularity; the first metrics' ones are spread evenly."""
    ways = product(_GRANULARITIES, _TAUS, _metrics(scores))
    return [Settings(metric=metric, tau=tau, granularity=how) for how, tau, metric in ways]


def _betas(scores: LayerScores, budget: Budget) -> list[float]:
    every = atp.candidates(len({layer.block for layer in scores.layers}), budget.sparsity)
    stride = max(1, len(every) // _BETAS)
    return list(every[stride - 1 :: stride])


def _called(name: str, settings: Settings) -> str:
    said = (f"{key}={getattr(settings, key)}" for key in settings.given)
    return " ".join((name, *said))
