"""Block by block through the student as it recovers: what the methods that learn one block after another share."""

from collections.abc import Callable, Sequence

from tailcut.checkpoint import read_shard
from tailcut.compress.blocks import Stream
from tailcut.compress.journal import Journal
from tailcut.compress.recovery import Task
from tailcut.compress.recovery._points import points_of
from tailcut.compress.recovery._store import store_rest
from tailcut.progress import Reporter
from tailcut.results import RecoveryPoint

ENDED = "every block is done"
OnBlock = Callable[[int, Sequence[Stream]], None]


def walk(
    name: str, task: Task, journal: Journal, opened: Callable[[], Sequence[Stream]], work: OnBlock, report: Reporter
) -> tuple[RecoveryPoint, ...]:
    """Every block in order, then the rest of the checkpoint; finished ones are replayed, and only as far as a later one
    needs it.

    opened: the streams in front of block 0, asked for only if a block is missing. work: stores a block's shard and point.
    """
    student, weights = task.student, task.student.weights
    missing = [index for index in range(student.blocks) if not journal.has(student.shard(index))]
    if missing:
        weights.load_rest()
        streams = opened()
        for index in range(missing[-1] + 1):
            report(name, index, student.blocks, f"block {index}")
            if index in missing:
                work(index, streams)
            if index < missing[-1]:
                with weights.block(index, read_shard(journal.model / student.shard(index))) as block:
                    for stream in streams:
                        stream.advance(index, block)
        report(name, student.blocks, student.blocks)
    if not journal.has(student.shard(student.blocks)):
        store_rest(journal, student)
    return points_of(journal, student.blocks)
