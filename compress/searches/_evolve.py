"""Evolution of a plan: offspring by random moves, compared on little text, the best of them on more.

EvoPress's loop (arXiv 2410.14649, algorithm 1) with one parent. A generation's offspring all see the same little text,
and only there they are compared with each other; the parent is compared with the best of them on all of the text,
where both are always measured alike, so that the parent's fitness never gets worse. Pure: fitness is a function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from tailcut.compress.searches._grid import Grid
from tailcut.compress.searches._ladder import Levels
from tailcut.compress.searches._moves import MOVES, mutate

TOP: Final = 2  # the fidelity at which parents are compared
_TRIES: Final = 8  # moves tried for one offspring before it is given up


class Fitness(Protocol):
    """What a plan costs; lower is better."""

    def __call__(self, levels: Levels, fidelity: int, turn: int) -> float:
        """At fidelity 0, 1 or 2 = TOP. Below TOP the text may differ from turn to turn."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Offspring a generation, how many of them go on to fidelity 1 and to TOP, and the moves that make them."""

    offspring: int = 16
    survivors: tuple[int, int] = (4, 2)
    moves: tuple[str, ...] = MOVES


@dataclass(frozen=True, slots=True)
class Evolved:
    """The best plan, its fitness at TOP, and what it took."""

    levels: Levels
    fitness: float
    generations: int
    wins: dict[str, int]  # by move


class Spent(Exception):  # noqa: N818 - not an error: the effort is used up
    """Raised by a fitness function that may measure no more."""


def evolve(
    grid: Grid,
    start: Levels,
    fitness: Fitness,
    rng: np.random.Generator,
    rules: Rules,
    tell: Callable[[int, float], None] = lambda generation, best: None,
) -> Evolved:
    """Generations until `fitness` raises Spent, or no move is possible; never worse than `start` at TOP.

    Spent at the very first measurement gives `start` back with a fitness of infinity.
    """
    parent, best = start, float("inf")
    wins = dict.fromkeys(rules.moves, 0)
    generation = 0
    try:
        best = fitness(parent, TOP, 0)
        while litter := _offspring(grid, parent, wins, rules.offspring, rng):
            generation += 1
            for move, child in _selected(litter, fitness, generation, rules):
                value = fitness(child, TOP, generation)
                if value < best:
                    parent, best = child, value
                    wins[move] += 1
            tell(generation, best)
    except Spent:
        pass
    return Evolved(parent, best, generation, wins)


def _selected(
    litter: Sequence[tuple[str, Levels]], fitness: Fitness, turn: int, rules: Rules
) -> Sequence[tuple[str, Levels]]:
    """The offspring that are worth all of the text, best first."""
    for fidelity, keep in enumerate(rules.survivors):
        costs = [fitness(child, fidelity, turn) for _, child in litter]
        order = np.argsort(costs, kind="stable")[:keep]
        litter = [litter[int(place)] for place in order]
    return litter


def _offspring(
    grid: Grid, parent: Levels, wins: dict[str, int], count: int, rng: np.random.Generator
) -> list[tuple[str, Levels]]:
    """Up to `count` different plans other than the parent; moves that won before are tried more often."""
    moves = list(wins)
    chances = np.array([1.0 + wins[move] for move in moves])
    found: dict[bytes, tuple[str, Levels]] = {}
    for _ in range(count * _TRIES):
        if len(found) == count:
            break
        # half by success, half evenly: a move that never won so far must not die out
        share = 0.5 * chances / chances.sum() + 0.5 / len(moves)
        move = moves[int(rng.choice(len(moves), p=share))]
        child = mutate(grid, parent, move, rng)
        if not np.array_equal(child, parent):
            found.setdefault(child.tobytes(), (move, child))
    return list(found.values())
