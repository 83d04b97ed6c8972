"""Random changes of a plan that keep the budget: some matrices rise on the ladder, others fall about as far.

EvoPress (arXiv 2410.14649, section 3) moves single matrices. Plans that lie far from each other differ by whole
blocks or kinds of matrices, and a search that only moves single ones takes hundreds of steps there; so the moves here
are between two regions of equal shape: single matrices, blocks, runs of blocks, kinds (all q_proj), and kinds in runs.
"""

from typing import Final

import numpy as np

from tailcut.compress.searches._grid import Grid, settle
from tailcut.compress.searches._ladder import Levels

SINGLE: Final = ("matrix",)
MOVES: Final = ("matrix", "block", "run", "kind", "stripe")
_MOST_LEVELS: Final = 4  # of the lighter region at once
_SHARE: Final = 4  # one in so many of a short ladder's levels is the most that a single matrix moves at once


def mutate(grid: Grid, levels: Levels, move: str, rng: np.random.Generator) -> Levels:
    """Another plan that meets the goal, or the same one where the move is not possible."""
    result = levels
    # EvoPress: min(U{1..3}, U{1..3}) exchanges of single matrices; of regions one is enough
    exchanges = int(rng.integers(1, 4, 2).min()) if move == "matrix" else 1
    for _ in range(exchanges):
        result = _exchange(grid, result, move, rng)
    return result


def _exchange(grid: Grid, levels: Levels, move: str, rng: np.random.Generator) -> Levels:
    first, second = (_region(grid, move, rng) for _ in range(2))
    ours, theirs = first & ~second, second & ~first
    if not ours.any() or not theirs.any():
        return levels
    if grid.sizes[ours].sum() < grid.sizes[theirs].sum():
        ours, theirs = theirs, ours
    ratio = float(grid.sizes[ours].sum() / grid.sizes[theirs].sum())
    sign = 1 if rng.random() < 0.5 else -1
    depth = min(int(rng.integers(1, 4)), max(1, grid.ladder.top // _SHARE)) if move == "matrix" else 1
    changed = levels.copy()
    changed[ours] += sign * depth
    changed[theirs] -= sign * min(max(1, round(ratio * depth)), max(_MOST_LEVELS, depth))
    result = settle(grid, np.clip(changed, 0, grid.ladder.top), _order(ours, theirs, rng))
    return result if 0 <= grid.excess(result) < grid.coarsest else levels


def _order(ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Who settles what is left of the exchange: the rest, in any order, and last of all those that were moved."""
    rest, moved = np.flatnonzero(~(ours | theirs)), np.flatnonzero(ours | theirs)
    return [*rng.permutation(rest).tolist(), *rng.permutation(moved).tolist()]


def _region(grid: Grid, move: str, rng: np.random.Generator) -> np.ndarray:
    """bool [matrices]."""
    blocks, kinds = np.array(grid.blocks), np.array(grid.kinds)
    chosen = int(rng.integers(len(blocks)))
    match move:
        case "matrix":
            return np.asarray(np.arange(len(blocks)) == chosen)
        case "block":
            return np.asarray(blocks == blocks[chosen])
        case "kind":
            return np.asarray(kinds == kinds[chosen])
    count = int(blocks.max()) + 1
    length = int(rng.integers(2, max(3, count // 3 + 1)))
    run = (blocks >= blocks[chosen]) & (blocks < blocks[chosen] + length)
    return np.asarray(run & (kinds == kinds[chosen]) if move == "stripe" else run)
