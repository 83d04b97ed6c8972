"""Layer by layer, no training: the kept weights that reproduce the dense matrix's outputs on calibration text.

Block by block as in `tailcut compress`: the inputs of a matrix are those that the recovered blocks before it and its own
sparse block give it, the outputs those of the dense matrix on the same inputs. Quantised matrices are solved in floats and
rounded by GPTQ, which keeps zeros. A row is changed only if its error on the calibration text falls.
"""

import time
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from tailcut.allocation import Dense
from tailcut.checkpoint import float32
from tailcut.compress.blocks import Stream, open_stream
from tailcut.compress.collecting import collect
from tailcut.compress.discovery import Linear, read_weight
from tailcut.compress.journal import Journal
from tailcut.compress.pruners._given import damped, hessian_of
from tailcut.compress.quantisers import gptq
from tailcut.compress.quantisers._grid import Quantised
from tailcut.compress.recovery import Task
from tailcut.compress.recovery._points import block_point
from tailcut.compress.recovery._solve import output_errors, solve_on_support
from tailcut.compress.recovery._store import Recovered, store_block
from tailcut.compress.recovery._walk import ENDED, walk
from tailcut.compress.statistics import Needs, Statistics
from tailcut.progress import Reporter
from tailcut.quantised import Integers
from tailcut.results import RecoveryStage

TRAINS: Final = False
PAIRS_BLOCKS: Final = True
DAMPING: Final = 0.01  # share of the mean diagonal; it pulls towards the dense weights
_NEEDS: Final[frozenset[Needs]] = frozenset(("hessian",))


def recover(task: Task, journal: Journal, report: Reporter) -> RecoveryStage:
    """Every block in order."""
    settings = task.settings

    def opened() -> list[Stream]:
        return [open_stream(task.student.weights, task.texts.rows(range(settings.samples)))]

    def work(index: int, streams: Sequence[Stream]) -> None:
        _block(task, journal, index, streams[0])

    points = walk("least-squares", task, journal, opened, work, report)
    tokens, seconds = settings.samples * task.texts.seqlen, sum(point.seconds for point in points)
    return RecoveryStage("least-squares", "relative output error", ENDED, 0, tokens, seconds, None, points)


def _block(task: Task, journal: Journal, index: int, stream: Stream) -> None:
    began, student = time.monotonic(), task.student
    asked = dict.fromkeys(student.of(index), _NEEDS)
    seen = collect(student.weights, index, asked, stream)
    found: dict[str, Recovered] = {}
    errors = torch.zeros(2, dtype=torch.float64)
    for linear in student.of(index):
        found[linear.name], pair = solved(task, linear, seen.pop(linear.name))
        errors += pair
    before, after = (errors / len(found)).tolist()
    block_point(journal, index, began, index * task.settings.samples, before, after)
    store_block(journal, student, index, found)


def solved(task: Task, linear: Linear, stats: Statistics) -> tuple[Recovered, Tensor]:
    """One matrix, and its squared output error over that of a matrix of zeros: before and after, float64 [2]."""
    student, device = task.student, task.student.weights.device
    start = student.matrix(linear).to(device)
    stored = read_weight(task.teacher.checkpoint, linear)
    dense = torch.from_numpy(float32(stored).copy()).to(device)
    hessian = hessian_of(stats).float()
    gram = damped(hessian, DAMPING)
    made = solve_on_support(dense, student.keep(linear).to(device), start, gram)
    grid = student.grid(linear)
    integers = None if grid is None else gptq.quantise(made, Dense(), grid.bits, Statistics(hessian=gram))
    finished = made if integers is None else integers.dense()
    old, new = (output_errors(weight, dense, hessian) for weight in (start, finished))
    better = new < old
    if integers is not None and grid is not None:
        integers = _choose(student.integers.read(linear.name).q, grid.scales, integers, better)
    whole = float(output_errors(torch.zeros_like(dense), dense, hessian).sum()) or 1.0
    errors = torch.stack([old.sum(), torch.where(better, new, old).sum()]).cpu() / whole
    return Recovered(torch.where(better[:, None], made, start), integers, float(errors[1])), errors


def _choose(q: Integers, scales: Tensor, other: Quantised, better: Tensor) -> Quantised:
    """The rows of `other` where it is better, the student's own elsewhere."""
    own = torch.from_numpy(q.copy()).to(other.q.device)
    kept = scales.to(other.scales.device)
    rows = better if kept.ndim == 1 else better[:, None]
    return Quantised(torch.where(better[:, None], other.q, own), torch.where(rows, other.scales, kept))
