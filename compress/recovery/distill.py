"""Distillation from the dense teacher: all weights learn its next-token distributions, pruned ones stay zero."""

from typing import Final

from tailcut.compress.journal import Journal
from tailcut.compress.recovery import Task
from tailcut.compress.recovery._support import plain_support
from tailcut.compress.recovery._whole import How, recover_whole
from tailcut.progress import Reporter
from tailcut.results import RecoveryStage

TRAINS: Final = True
PAIRS_BLOCKS: Final = False
RATE: Final = 3e-4


def recover(task: Task, journal: Journal, report: Reporter) -> RecoveryStage:
    """Learn every weight; AdamW needs 16 bytes a parameter beside the teacher's 2 (GPU) or 4 (CPU)."""
    return recover_whole(task, journal, report, How("distill", RATE, plain_support, all_weights=True))
