"""What an automatic choice chooses from: every allocator that works from the scores at hand, in several settings."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import Final

from tailcut import plugins
from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.compress import allocators
from tailcut.compress.allocators import Granularity, Settings, Solver, allocate, atp
from tailcut.errors import InputError

_TAUS: Final = (0.1, 0.2, 0.3, 0.5)
_SPREADS: Final = (0.02, 0.04, 0.08, 0.15, 0.2)
_BETAS: Final = 6  # of those that ATP's authors try, evenly chosen
_GRANULARITIES: Final[tuple[Granularity, ...]] = ("block", "mixed", "matrix")
_SOLVERS: Final[tuple[Solver, ...]] = ("qp", "lp")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan and what it is called: the allocator and the settings that are not its defaults."""

    name: str
    allocation: Allocation


def candidates(scores: LayerScores, budget: Budget) -> tuple[tuple[Candidate, ...], dict[str, str]]:
    """Plans that differ, uniform first, then every allocator's default, then other settings; and what could not be had.

    The second value is allocator (and metric) -> why, one sentence.
    """
    found: dict[tuple[float, ...], Candidate] = {}
    missing: dict[str, str] = {}
    for name, settings in _tried(scores, budget):
        try:
            allocation = allocate(name, scores, budget, settings)
        except InputError as error:
            missing.setdefault(f"{name} {settings.metric or ''}".strip(), str(error))
            continue
        plan = tuple(round(item.pattern.sparsity, 9) for item in allocation.plans.values())
        found.setdefault(plan, Candidate(_called(name, settings), allocation))
    return tuple(found.values()), missing


def _tried(scores: LayerScores, budget: Budget) -> Iterator[tuple[str, Settings]]:
    """Uniform, every default, then one more setting of each allocator in turn: wherever it is cut short, all were heard."""
    yield "uniform", Settings()
    known = [name for name in plugins.names(allocators.PACKAGE) if _plans_freely(name)]
    yield from ((name, Settings()) for name in known if name != "uniform")
    groups: dict[str, list[Settings]] = {
        "alpha": _alphas(scores),
        "atp": [Settings(beta=beta) for beta in _betas(scores, budget)],
        "owl": [Settings(spread=spread) for spread in _SPREADS],
        "dlp": [Settings(spread=spread) for spread in _SPREADS],
        "als": [Settings(solver=how, granularity=what) for how, what in product(_SOLVERS, _GRANULARITIES)],
        "global": [Settings(metric="wanda")],
    }
    for settings in zip_longest(*groups.values()):
        yield from ((name, one) for name, one in zip(groups, settings, strict=True) if one is not None)


def _plans_freely(name: str) -> bool:
    """Whether an allocator meets any sparsity to rounding, and needs nothing but scores."""
    steps = getattr(plugins.load(allocators.PACKAGE, name), "STEPS", False)
    return not steps and "cost" not in allocators.load(name).SETTINGS


def _alphas(scores: LayerScores) -> list[Settings]:
    """Every metric that all layers have, at every tau and granularity; the first metrics' ones are spread evenly."""
    known = (name.replace("-", "_") for name in plugins.names("tailcut.compress.metrics"))
    metrics = [name for name in known if all(name in layer.values for layer in scores.layers)]
    ways = product(_GRANULARITIES, _TAUS, metrics)
    return [Settings(metric=metric, tau=tau, granularity=how) for how, tau, metric in ways]


def _betas(scores: LayerScores, budget: Budget) -> list[float]:
    every = atp.candidates(len({layer.block for layer in scores.layers}), budget.sparsity)
    stride = max(1, len(every) // _BETAS)
    return list(every[stride - 1 :: stride])


def _called(name: str, settings: Settings) -> str:
    said = (f"{key}={getattr(settings, key)}" for key in settings.given)
    return " ".join((name, *said))
