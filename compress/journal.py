"""The durable record of a compression under way: `<out>.work/` beside the output.

    journal     what is being made: a fingerprint of everything that decides the bytes
    model/      the output so far; a shard that stands under its final name is finished and on disk

A run with the same fingerprint goes on from the finished shards; any other starts afresh. `publish` renames
`model/` to the output, so a kill at any moment leaves either no output or the whole one.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tailcut.bitmask import Array
from tailcut.checkpoint import write_shard
from tailcut.files import full_disk_is_clear, publish, sweep_inside, write_file


class Found(Enum):
    """What lay in the work directory when it was opened, as users are told of it."""

    NOTHING = "nothing"
    SAME = "going on with an unfinished run"
    OTHER = "an unfinished run with other settings was removed; started afresh"


@dataclass(frozen=True, slots=True)
class Journal:
    """An open work directory."""

    out: Path
    work: Path

    @property
    def model(self) -> Path:
        """Where the output grows."""
        return self.work / "model"

    def has(self, shard: str) -> bool:
        """Whether this shard is finished."""
        return (self.model / shard).is_file()

    def store(self, shard: str, tensors: Mapping[str, Array]) -> Path:
        """Write one shard; under its final name only once it is flushed."""
        part = self.work / f"{shard}.part"
        write_shard(part, tensors)
        part.replace(self.model / shard)
        return self.model / shard

    def fresh(self, name: str) -> Path:
        """An empty directory beside `model/`."""
        directory = self.work / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        return directory

    def publish(self, directory: Path) -> None:
        """Rename `directory` (inside the work directory) to the output and clean up."""
        sweep_inside(directory)  # a kill may have hit the writing of a small file, whatever was written in place since
        with full_disk_is_clear(self.out):
            if self.out.is_dir():
                self.out.rmdir()  # empty: `require_absent` saw to it
            publish(directory, self.out)
        shutil.rmtree(self.work, ignore_errors=True)


def open_journal(out: Path, fingerprint: str) -> tuple[Journal, Found]:
    """The journal for `out`, which goes on from an earlier run if that had the same fingerprint."""
    work = out.with_name(f"{out.name}.work")
    journal, mark = Journal(out, work), work / "journal"
    if mark.is_file() and mark.read_bytes() == fingerprint.encode() and journal.model.is_dir():
        sweep_inside(journal.model)  # before manifests list what is there
        return journal, Found.SAME
    found = Found.OTHER if journal.model.is_dir() and any(journal.model.iterdir()) else Found.NOTHING
    if work.exists():
        mark.unlink(missing_ok=True)  # first, so that a kill while clearing cannot leave a mark on half a directory
        shutil.rmtree(work)
    with full_disk_is_clear(out):
        journal.model.mkdir(parents=True)
        write_file(mark, fingerprint.encode())
    return journal, found
