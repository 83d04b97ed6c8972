"""Every measurement of a search, in order: its journal, its clock, and what its picture is drawn from.

Line one of the file names the task by a fingerprint; each line after it is one measurement with the seconds since the one
before it. A search of the same task finds its earlier measurements here and charges their seconds to its clock again, so
that it decides as it did before and goes on where it was. A last line that a kill cut short is dropped.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from tailcut.errors import InputError
from tailcut.files import full_disk_is_clear

SCHEMA: Final = "tailcut/SearchTrace"


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement."""

    key: str  # plan, text and manner: what is measured
    stage: str
    label: str
    tokens: int
    kl: float  # nats a token
    seconds: float


@dataclass(slots=True)
class Trace:
    """Measurements so far. `earlier` are those that the file held when it was opened and that were not asked for yet."""

    path: Path | None = None
    records: list[Record] = field(default_factory=list)
    earlier: dict[str, Record] = field(default_factory=dict)
    known: dict[str, Record] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)  # stage -> seconds
    counts: dict[str, int] = field(default_factory=dict)  # stage -> measurements
    _stream: IO[str] | None = None
    _last: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Of everything that was recorded, whenever it ran."""
        return sum(self.spent.values())

    def count(self, *stages: str) -> int:
        """Measurements of these stages."""
        return sum(self.counts.get(stage, 0) for stage in stages)

    def measure(self, key: str, stage: str, label: str, tokens: int, compute: Callable[[], float]) -> float:
        """The value under `key`: as known, as found in the file, or computed and written there."""
        if key in self.known:
            return self.known[key].kl
        if key in self.earlier:
            record = self.earlier.pop(key)
            self._last = time.monotonic()
        else:
            value = compute()
            now = time.monotonic()
            record = Record(key, stage, label, tokens, value, max(0.0, now - self._last))
            self._last = now
            self._write(asdict(record))
        self.records.append(record)
        self.known[key] = record
        self.spent[stage] = self.spent.get(stage, 0.0) + record.seconds
        self.counts[stage] = self.counts.get(stage, 0) + 1
        return record.kl

    def close(self) -> None:
        """No more measurements."""
        if self._stream is not None:
            self._stream.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._stream is None or self.path is None:
            return
        with full_disk_is_clear(self.path):
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()


def open_trace(path: Path | None, fingerprint: str, began: float | None = None) -> Trace:
    """The trace of the task with this fingerprint; another task's file is begun anew.

    `began` (time.monotonic; None: now) is when the seconds of the first measurement start.
    """
    start = time.monotonic() if began is None else began
    if path is None:
        return Trace(_last=start)
    lines, good = _lines(path)
    head = {"schema": SCHEMA, "schema_version": 1, "task": fingerprint}
    same = bool(lines) and lines[0] == head
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_is_clear(path):
        stream = path.open("r+" if same else "w", encoding="utf-8", newline="\n")
        if same:
            stream.seek(good)
            stream.truncate()
        else:
            stream.write(json.dumps(head) + "\n")
            stream.flush()
    found = [_record(path, line) for line in lines[1:]] if same else []
    return Trace(path, earlier={record.key: record for record in found}, _stream=stream, _last=start)


def read_trace(path: Path) -> tuple[Record, ...]:
    """What a search wrote, in order; InputError if the file is none of a search."""
    lines, _ = _lines(path)
    if not lines or lines[0].get("schema") != SCHEMA:
        raise InputError(f"{path}: not the trace of a search")
    return tuple(_record(path, line) for line in lines[1:])


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a file that are JSON objects, up to the first that is none, and where they end (bytes)."""
    found: list[dict[str, Any]] = []
    good = 0
    if not path.is_file():
        return found, good
    for raw in path.read_bytes().splitlines(keepends=True):
        try:
            line = json.loads(raw) if raw.endswith(b"\n") else None
        except ValueError:
            line = None
        if not isinstance(line, dict):
            break
        found.append(line)
        good += len(raw)
    return found, good


def _record(path: Path, line: dict[str, Any]) -> Record:
    try:
        return Record(**line)
    except TypeError as error:
        raise InputError(f"{path}: not the trace of a search, or of another version; remove it") from error
