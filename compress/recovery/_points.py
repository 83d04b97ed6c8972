"""What became of each block, noted beside the journal before its shard: a resumed run tells the whole curve."""

import time
from pathlib import Path

from tailcut import codec
from tailcut.compress.journal import Journal
from tailcut.results import RecoveryPoint


def block_point(journal: Journal, index: int, began: float, tokens: int, before: float, after: float) -> None:
    """Note one block: errors on its outputs before and after, and the seconds since `began` (time.monotonic)."""
    codec.save(RecoveryPoint(index, tokens, time.monotonic() - began, after, before), _path(journal, index))


def points_of(journal: Journal, blocks: int) -> tuple[RecoveryPoint, ...]:
    """The notes of all blocks, in order."""
    return tuple(codec.load(RecoveryPoint, _path(journal, index)) for index in range(blocks))


def _path(journal: Journal, index: int) -> Path:
    return journal.work / f"block-{index:05d}.json"
