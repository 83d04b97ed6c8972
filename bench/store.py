"""Results as they come, for good: an append-only SQLite file of `BenchResult`s and `SweepPoint`s.

One row of `results` is one result with its JSON, whole; one row of `measurements` is what one engine did in it, as
numbers that can be filtered. Nothing is ever changed or deleted (triggers refuse it), and the same result is kept once.
An append is one transaction: a kill leaves the result in or out, and any number of processes may append.

Why SQLite and not DuckDB: DuckDB's file takes one writing process at a time, and a history of some thousand rows needs no
columns; SQLite is in the standard library. WAL needs a local disk: keep the file off network file systems.
A file from elsewhere is not trusted: its schema must be this one to the letter, and pages and texts are checked.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tailcut import codec
from tailcut.bench.store_rows import Measurement, Result, head_of, measurements
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.files import NO_SPACE, disk_full
from tailcut.results import BenchResult
from tailcut.sweep_points import SweepPoint

VERSION: Final = 1
_APPLICATION: Final = 0x7A11C7  # says whose file it is
_MAGIC: Final = b"SQLite format 3\0"
_MOST_BYTES: Final = 64 << 20  # of one text; raw samples of a long bench are a tenth of it
_MOST_FILE: Final = 4 << 30
_MOST_SAID: Final = 200
_WAIT_S: Final = 60.0  # for other writers; an append takes milliseconds
KINDS: Final = {"BenchResult": BenchResult, "SweepPoint": SweepPoint}
_TABLES: Final = {
    "results": """CREATE TABLE results (
 id INTEGER PRIMARY KEY,
 sha256 TEXT NOT NULL UNIQUE,
 recorded TEXT NOT NULL,
 kind TEXT NOT NULL,
 model TEXT NOT NULL,
 machine TEXT NOT NULL,
 cpu TEXT NOT NULL,
 raw TEXT NOT NULL
) STRICT""",
    "measurements": """CREATE TABLE measurements (
 result INTEGER NOT NULL REFERENCES results (id),
 place INTEGER NOT NULL,
 engine TEXT NOT NULL,
 weights TEXT NOT NULL,
 cut TEXT NOT NULL,
 sparsity REAL,
 dense_sha256 TEXT NOT NULL,
 sparse_sha256 TEXT NOT NULL,
 workload TEXT NOT NULL,
 status TEXT NOT NULL,
 tokens_per_second REAL,
 against TEXT NOT NULL,
 speedup REAL,
 speedup_low REAL,
 speedup_high REAL,
 perplexity_ratio REAL,
 perplexity_low REAL,
 perplexity_high REAL,
 PRIMARY KEY (result, place)
) STRICT""",
}
_TRIGGERS: Final = {
    f"{table}_{verb}": f"CREATE TRIGGER {table}_{verb} BEFORE {verb.upper()} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'append-only'); END"
    for table in _TABLES
    for verb in ("update", "delete")
}
_SCHEMA: Final = _TABLES | _TRIGGERS
_COLUMNS: Final = ("recorded", "kind", "model", "machine", "cpu")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows are wanted; None wants all. `model` and `engine` are names, `machine` the start of a fingerprint."""

    model: str | None = None
    machine: str | None = None
    engine: str | None = None
    since: str | None = None  # "2026-11-01" or "7d"; what was recorded from then on


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement with the head of its result."""

    id: int  # of the result
    recorded: str  # UTC, ISO 8601
    kind: str
    model: str
    machine: str
    cpu: str
    measured: Measurement


class Store:
    """One database file; made with the first append. Every call opens and closes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, results: Sequence[Result], model: str | None = None) -> int:
        """Add results, each with its own transaction; how many were new. `model`: its name, where a result has none."""
        with self._open(write=True) as connection:
            return sum(_insert(connection, result, model) for result in results)

    def rows(self, wanted: Filter = Filter()) -> tuple[Row, ...]:
        """Measurements that fit, oldest first."""
        where, values = _where(wanted)
        names = [f"m.{name}" for name in Measurement.__dataclass_fields__]
        heads = [f"r.{name}" for name in ("id", *_COLUMNS)]
        # names of columns only, from this file; what a user gave is bound
        query = (
            f"SELECT {', '.join(heads + names)} FROM measurements m JOIN results r ON r.id = m.result "  # noqa: S608
            f"{where} ORDER BY r.recorded, r.id, m.place"
        )
        with self._open() as connection:
            found = connection.execute(query, values).fetchall()
        return tuple(_row(row) for row in found)

    def raw(self, number: int) -> Result:
        """The result that was appended under this id, checked as any file is."""
        with self._open() as connection:
            found = connection.execute("SELECT kind, raw, sha256 FROM results WHERE id = ?", (number,)).fetchone()
        if found is None:
            raise InputError(f"{self.path}: holds no result {number}; `tailcut results list` shows the numbers")
        kind, raw, sha256 = found
        if kind not in KINDS or hashlib.sha256(raw.encode()).hexdigest() != sha256:
            raise InputError(f"{self.path}: result {number} is not what was recorded; the file was changed")
        value: Result = codec.from_json(KINDS[kind], raw, f"{self.path} result {number}")
        return value

    @contextmanager
    def _open(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A checked connection; whatever SQLite finds wrong is one sentence."""
        try:
            _require_sqlite(self.path, write=write)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(_connect(self.path)) as connection:
                if write:
                    _create(connection)
                _require_schema(connection, self.path)
                if not write:
                    _require_sound(connection, self.path)
                yield connection
        except (sqlite3.DatabaseError, UnicodeError) as error:
            raise _explained(self.path, error) from error
        except OSError as error:
            if error.errno in NO_SPACE:
                raise disk_full(self.path) from error
            raise InputError(f"{self.path}: cannot open the results ({error.strerror})") from error


def _row(values: tuple[Any, ...]) -> Row:
    number, recorded, kind, model, machine, cpu, *measured = values
    return Row(number, recorded, kind, model, machine, cpu, Measurement(*measured))


def _require_sqlite(path: Path, *, write: bool) -> None:
    """Before SQLite looks at it: an empty file is a new one to it, and another file's error says little."""
    empty = not path.exists() or (path.is_file() and path.stat().st_size == 0)
    if empty and not write:
        raise InputError(f"{path}: no results are recorded there yet; `tailcut results add` or a sweep makes the file")
    if empty:
        return
    if not path.is_file():
        raise InputError(f"{path}: not a file; name a results file")
    if path.stat().st_size > _MOST_FILE:
        raise InputError(f"{path}: {path.stat().st_size} bytes are more than the {_MOST_FILE} that results may have")
    with path.open("rb") as stream:
        head = stream.read(len(_MAGIC))
    if head != _MAGIC:
        raise InputError(f"{path}: not a results file of tailcut (not SQLite); name another file")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES)
    for setting in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def _create(connection: sqlite3.Connection) -> None:
    """The schema, if the file is new. FULL: an append that returned is on the disk."""
    connection.execute("PRAGMA synchronous = FULL")
    with _transaction(connection):
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            return
        for statement in _SCHEMA.values():
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    # readers then do not wait for writers; where another process is in the way, the old journal is as safe
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")


def _require_schema(connection: sqlite3.Connection, path: Path) -> None:
    """InputError unless the file is ours, of this version, and holds nothing that tailcut did not put there."""
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if application != _APPLICATION:
        raise InputError(f"{path}: an SQLite file, but not tailcut's results; name another file")
    if version != VERSION:
        raise InputError(f"{path}: results of version {version}, this tailcut reads {VERSION}; export them with theirs")
    found = dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
    if found != _SCHEMA:
        odd = sorted(name for name in {*found, *_SCHEMA} if found.get(name) != _SCHEMA.get(name))
        raise InputError(f"{path}: {', '.join(odd)} is not as tailcut makes it; the file was changed, do not trust it")


def _require_sound(connection: sqlite3.Connection, path: Path) -> None:
    """InputError if a page is damaged: reads every page, so appends do without."""
    answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if answer != "ok":
        raise InputError(f"{path}: damaged ({_short(answer)}); go on with a copy or a new file")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _insert(connection: sqlite3.Connection, result: Result, model: str | None) -> bool:
    raw = codec.to_json(result)
    head = head_of(result, model)
    content = hashlib.sha256(raw.encode()).hexdigest()
    with _transaction(connection):
        if connection.execute("SELECT 1 FROM results WHERE sha256 = ?", (content,)).fetchone():
            return False
        now = datetime.now(UTC).isoformat(timespec="seconds")
        cursor = connection.execute(
            "INSERT INTO results (sha256, recorded, kind, model, machine, cpu, raw) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (content, now, type(result).__name__, head.model, head.machine, head.cpu, raw),
        )
        for place, measured in enumerate(measurements(result)):
            values = {"result": cursor.lastrowid, "place": place} | asdict(measured)
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO measurements VALUES ({marks})", tuple(values.values()))  # noqa: S608
    return True


def _where(wanted: Filter) -> tuple[str, dict[str, str]]:
    tests = {
        "model": "r.model = :model",
        "machine": "substr(r.machine, 1, length(:machine)) = :machine",
        "engine": "m.engine = :engine",
        "since": "r.recorded >= :since",
    }
    values = {name: value for name, value in asdict(wanted).items() if value is not None}
    if "since" in values:
        values["since"] = since(values["since"])
    return ("WHERE " + " AND ".join(tests[name] for name in values) if values else ""), values


def since(text: str, now: datetime | None = None) -> str:
    """'2026-11-01' or a number of days '7d' -> the moment as it is recorded; InputError for anything else."""
    try:
        if text.endswith("d"):
            moment = (now or datetime.now(UTC)) - timedelta(days=float(text[:-1]))
        else:
            moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InputError(f"since {text!r} is neither a date such as 2026-11-01 nor days such as 7d") from error
    return moment.isoformat(timespec="seconds")


def _explained(path: Path, error: Exception) -> InputError | MissingEnvironmentError:
    said = _short(str(error))
    if "locked" in said or "busy" in said:
        return MissingEnvironmentError(f"{path}: another process has held the results for {_WAIT_S:.0f} s; try again")
    if "full" in said:
        return disk_full(path)
    if "readonly" in said or "unable to open" in said:
        return MissingEnvironmentError(f"{path}: cannot write the results there ({said}); name another file")
    return InputError(f"{path}: not a results file of tailcut, or damaged ({said})")


def _short(said: str) -> str:
    """One line: SQLite writes several, and quotes the file."""
    return " ".join(said.split())[:_MOST_SAID]


def lines(store: Store, rows: Sequence[Row]) -> Iterator[str]:
    """JSON lines: each result once, whole, with when it was recorded."""
    for number in dict.fromkeys(row.id for row in rows):
        head = next(row for row in rows if row.id == number)
        body = json.loads(codec.to_json(store.raw(number)))
        yield json.dumps({"id": number, "recorded": head.recorded, "model": head.model, "result": body})
