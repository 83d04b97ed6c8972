"""EvoPress: evolution of single matrices' levels, from uniform (Sieberling et al., arXiv 2410.14649).

Published: levels pruned by SparseGPT in advance, 64 offspring a generation for 400 generations, their divergence on 2048,
16384 and 65536 tokens with 8, 2 and 1 survivors, min(U{1..3}, U{1..3}) exchanges of levels an offspring. Published levels
are equal in weights, ours in sparsity, with what unequal matrices leave over settled among the others; levels are
pruned when they are first met; there are 16 offspring, which with a time limit gives more generations. The plan that
is best by the quick measure is the result: nothing checks it against plain allocators. `auto` does.
"""

from typing import Final

import numpy as np

from tailcut.allocation import Allocation
from tailcut.compress.searches import Task
from tailcut.compress.searches._candidates import uniform
from tailcut.compress.searches._evolve import Evolved, Rules, evolve
from tailcut.compress.searches._grid import Grid
from tailcut.compress.searches._ladder import Levels
from tailcut.compress.searches._measures import Measures
from tailcut.compress.searches._moves import SINGLE
from tailcut.compress.searches._prepare import Subject, opened
from tailcut.compress.searches._report import allocation_of, signed
from tailcut.progress import Reporter

METRICS: Final = ()
_STAGE: Final = "evolve"


def search(task: Task, report: Reporter) -> Allocation:
    """Evolution from the uniform plan by exchanges between single matrices, as EvoPress (arXiv 2410.14649) does, by
    divergence from the dense model on calibration text that no statistics saw. Needs the model, a pruner and text, no
    scores. Shares out sparsity, N:M patterns or bits, as `auto` does, which starts from the best allocator, makes larger
    moves too, and checks what it found.
    """
    with opened(task, "evo", report) as ready:
        grid, measures = ready.subject.grid, ready.measures
        measures.until = measures.total
        start = grid.of(uniform(task.scores, grid).allocation)
        found = refine(measures, grid, start, Rules(moves=SINGLE), task.calibration.seed)
        return _result(ready.subject, measures, grid, found)


def refine(measures: Measures, grid: Grid, start: Levels, rules: Rules, seed: int) -> Evolved:
    """Generations from `start` until the measures are spent."""
    return evolve(
        grid,
        start,
        lambda levels, fidelity, turn: measures.quick(_STAGE, levels, fidelity, turn),
        np.random.default_rng([seed, 2]),
        rules,
        lambda turn, best: measures.report("search", int(measures.used), int(measures.total), f"{turn}: KL {best:.4f}"),
    )


def _result(subject: Subject, measures: Measures, grid: Grid, found: Evolved) -> Allocation:
    more = {"generations": str(found.generations), "kl": f"{found.fitness:.6f}"}
    return signed(allocation_of(grid, found.levels, subject.task.scores, "evo"), "evo", subject, measures, more)
