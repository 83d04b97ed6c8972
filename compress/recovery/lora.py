"""Distillation that learns a low-rank change of each matrix, merged under its mask: see `_support.LowRank`."""

from typing import Final

import torch
from torch import Tensor

from tailcut.compress.discovery import Linear
from tailcut.compress.journal import Journal
from tailcut.compress.recovery import Task
from tailcut.compress.recovery._student import Grid
from tailcut.compress.recovery._support import LowRank
from tailcut.compress.recovery._whole import How, recover_whole
from tailcut.progress import Reporter
from tailcut.results import RecoveryStage

TRAINS: Final = True
PAIRS_BLOCKS: Final = False
RATE: Final = 1e-3


def recover(task: Task, journal: Journal, report: Reporter) -> RecoveryStage:
    """Embeddings, norms and head stay as they are; the optimiser's state is a few per cent of the model's size."""
    generator = torch.Generator().manual_seed(task.settings.seed)

    def make(linear: Linear, keep: Tensor, grid: Grid | None) -> LowRank:
        return LowRank(keep, grid, linear.transposed, task.settings.rank, generator)

    return recover_whole(task, journal, report, How("lora", RATE, make, all_weights=False))
