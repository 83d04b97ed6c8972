"""How a cut model gets its quality back without losing a zero. A file here is a method; its name is the command line's.

A method gets the cut model, its dense teacher and text, and stores every shard of the recovered model in a journal. The
contract (tested over this folder's listing): a weight that is zero stays zero and N:M holds, quantised matrices stay on
grids of their bits, nothing else of the directory changes its shape or dtype, the same settings give the same bytes on a
CPU when the budget is in steps, and a run that was killed goes on and ends in those bytes.
"""

from dataclasses import dataclass
from typing import Protocol

from tailcut.compress.journal import Journal
from tailcut.compress.recovery._student import Student
from tailcut.compress.recovery._text import Texts
from tailcut.compress.resident import Weights
from tailcut.progress import Reporter
from tailcut.recovering import Effort, Recovering
from tailcut.results import RecoveryStage


@dataclass(frozen=True, slots=True)
class Task:
    """What a method works on. `effort` is its share of the budget."""

    student: Student
    teacher: Weights
    texts: Texts
    settings: Recovering
    effort: Effort


class Recovery(Protocol):
    """What a module of this folder offers."""

    TRAINS: bool  # takes a share of the budget
    PAIRS_BLOCKS: bool  # needs a teacher whose matrices have the student's shapes

    def recover(self, task: Task, journal: Journal, report: Reporter) -> RecoveryStage:
        """Store every shard and sidecar of the recovered model; goes on from what the journal's directory holds."""
        ...
