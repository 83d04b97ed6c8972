"""The results store: what goes in comes out, once; many writers, kills, and files that are not to be trusted."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut import codec
from tailcut.bench.store import Filter, Store, lines, since
from tailcut.errors import InputError, TailcutError
from tailcut.results import BandwidthPoint, BenchResult, EngineResult, Machine, PackageFacts, Ratio, Workload

Point = Callable[..., Any]
# appends N points that differ, and says so after each; run in processes of their own
WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from tailcut import codec
from tailcut import codec
from tailcut.bench.store import Store
from tailcut.sweep_points import SweepPoint
path, seed, name, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
point = codec.load(SweepPoint, Path(seed))
for number in range(count):
    Store(path).append([replace(point, key=f"{name}-{number}")])
    print(f"{name}-{number}", flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "results.sqlite")


@pytest.fixture
def seed(tmp_path: Path, sweep_point: Point) -> Path:
    codec.save(sweep_point("alpha", 0.6, (1.0, 2.0), (1.0, 1.1)), tmp_path / "seed.json")
    return tmp_path / "seed.json"


@pytest.fixture
def result() -> BenchResult:
    facts = PackageFacts("hash", 1, 0.5, 0.4, 1234)
    machine = Machine("a cpu", (), 1, 1, 1, 1, None, "", {}, None, "fedcba9876543210")
    engines = (
        EngineResult("tailcut", "measured", decode_speedup=Ratio(1.5, 1.4, 1.6, 0.95)),
        EngineResult("onnxruntime", "not measured", "absent"),
    )
    return BenchResult(machine, (BandwidthPoint(1, 20.0, (20.0,)),), Workload(), facts, facts, engines)


def writer(store: Path, seed: Path, name: str, count: int) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-c", WRITER, str(store), str(seed), name, str(count)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_results_come_back_as_they_were_and_once(store: Store, result: BenchResult, sweep_point: Point) -> None:
    point = sweep_point("alpha", 0.6, (1.0, 2.0), (1.0, 1.1))
    assert store.append([result, point], model="a model") == 2
    assert store.append([result, point, point]) == 0
    assert (store.raw(1), store.raw(2)) == (result, point)
    seen = [(row.id, row.model, row.measured.engine, row.measured.status) for row in store.rows()]
    assert seen == [
        (1, "a model", "tailcut", "measured"),
        (1, "a model", "onnxruntime", "absent"),
        (2, "a model", "tailcut", "measured"),
    ]
    last = store.rows()[-1].measured
    assert (last.cut, last.speedup_low, last.speedup_high, last.perplexity_high) == ("alpha 60 %", 1.0, 2.0, 1.1)
    exported = [json.loads(line) for line in lines(store, store.rows())]
    assert [item["result"]["schema"] for item in exported] == ["tailcut/BenchResult", "tailcut/SweepPoint"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Filter(), 3),
        (Filter(model="tiny"), 1),
        (Filter(machine="fedcba"), 2),
        (Filter(machine="%"), 0),
        (Filter(engine="onnxruntime"), 1),
        (Filter(since="1d"), 3),
        (Filter(since="2999-01-01"), 0),
        (Filter(model="' OR 1=1 --"), 0),
        (Filter(machine="fedcba", engine="tailcut", since="2000-01-01"), 1),
    ],
)
def test_filters(store: Store, result: BenchResult, sweep_point: Point, wanted: Filter, found: int) -> None:
    store.append([result, sweep_point("alpha", 0.6, (1.0, 2.0), None)])
    assert len(store.rows(wanted)) == found


def test_since_reads_dates_and_days() -> None:
    now = datetime(2026, 11, 8, 12, tzinfo=UTC)
    assert since("7d", now) == "2026-11-01T12:00:00+00:00"
    assert since("2026-11-01T02:00:00+02:00") == "2026-11-01T00:00:00+00:00"
    for text in ("yesterday", "d", "infd", "nand", "1e99d"):
        with pytest.raises(InputError, match="neither a date"):
            since(text)


@pytest.mark.parametrize("statement", ["UPDATE results SET raw = ''", "DELETE FROM measurements"])
def test_nothing_is_changed_or_deleted(store: Store, result: BenchResult, statement: str) -> None:
    store.append([result])
    with sqlite3.connect(store.path) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)


def changed(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def in_place_of(path: Path) -> None:
    path.unlink()
    changed(path, "CREATE TABLE t (a)")


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("not a database, and long enough to look at"), "not SQLite"),
    "another": (in_place_of, "not tailcut's results"),
    "newer": (lambda path: changed(path, "PRAGMA user_version = 99"), "results of version 99"),
    "view": (lambda path: changed(path, "CREATE VIEW v AS SELECT 1"), "v is not as tailcut makes it"),
    "trigger": (lambda path: changed(path, "DROP TRIGGER results_delete"), "results_delete is not as tailcut"),
    "truncated": (lambda path: os.truncate(path, 5000), "damaged|not a results file"),
    "directory": (a_directory, "not a file"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_file_that_is_not_ours_is_refused_in_a_sentence(
    store: Store, result: BenchResult, sweep_point: Point, attack: str
) -> None:
    store.append([result])
    changed(store.path, "PRAGMA journal_mode = DELETE")  # all of it in the one file
    change, sentence = ATTACKS[attack]
    change(store.path)
    for call in (store.rows, lambda: store.append([sweep_point("alpha", 0.5, None, None)])):
        with pytest.raises(TailcutError, match=sentence) as found:
            call()
        assert "\n" not in str(found.value)
    assert attack == "directory" or store.path.stat().st_size > 0


def test_flipped_bytes_give_the_right_rows_or_a_sentence(store: Store, result: BenchResult, tmp_path: Path) -> None:
    store.append([result])
    changed(store.path, "PRAGMA journal_mode = DELETE")
    whole, rng = store.path.read_bytes(), np.random.default_rng(6)
    for number in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            damaged[place] ^= int(rng.integers(1, 256))
        copy = Store(tmp_path / f"{number}.sqlite")
        copy.path.write_bytes(damaged)
        said = read_back(copy)
        assert "\n" not in said if isinstance(said, str) else set(said) <= {codec.to_json(result)}


def read_back(store: Store) -> str | list[str]:
    """Every result that the store gives, or its sentence."""
    try:
        return [codec.to_json(store.raw(row.id)) for row in store.rows()]
    except TailcutError as error:
        return str(error)


RAW = {
    "deep": ("[" * 100_000, "not valid JSON"),
    "no number": ('{"schema": "tailcut/BenchResult", "schema_version": 1, "machine": NaN}', "not valid JSON"),
    "wrong type": ('{"schema": "tailcut/BenchResult", "schema_version": 1, "machine": 3}', "field"),
}


@pytest.mark.parametrize("kind", RAW)
def test_a_prepared_result_is_refused_when_it_is_read(store: Store, result: BenchResult, kind: str) -> None:
    store.append([result])
    raw, sentence = RAW[kind]
    with sqlite3.connect(store.path) as connection:
        values = (hashlib.sha256(raw.encode()).hexdigest(), "2026-11-01", "BenchResult", "m", "f", "c", raw)
        connection.execute(
            "INSERT INTO results (sha256, recorded, kind, model, machine, cpu, raw) VALUES (?, ?, ?, ?, ?, ?, ?)",
            values,
        )
    with pytest.raises(InputError, match=sentence):
        store.raw(2)
    assert store.raw(1) == result


def test_no_file_yet_is_said(store: Store) -> None:
    with pytest.raises(InputError, match="no results are recorded"):
        store.rows()
    assert not store.path.exists()


def test_writers_side_by_side_lose_nothing(tmp_path: Path, seed: Path) -> None:
    path, count = tmp_path / "results.sqlite", 15
    writers = [writer(path, seed, f"w{number}", count) for number in range(4)]  # they also race to make the file
    for process in writers:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    keys = {Store(path).raw(row.id).key for row in Store(path).rows()}  # type: ignore[union-attr]
    assert keys == {f"w{writer}-{number}" for writer in range(4) for number in range(count)}


def test_kill_9_keeps_every_append_that_returned(tmp_path: Path, seed: Path) -> None:
    path, rng = tmp_path / "results.sqlite", np.random.default_rng(20261122)
    promised: set[str] = set()
    for number in range(6):
        process = writer(path, seed, f"k{number}", 100_000)
        assert process.stdout is not None
        first = process.stdout.readline()  # it is at work
        time.sleep(float(rng.uniform(0.0, 0.25)))
        process.send_signal(signal.SIGKILL)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, errors
        said = [line for line in (first + rest).splitlines(keepends=True) if line.endswith("\n")]
        promised |= {line.strip() for line in said}
    held = [Store(path).raw(row.id).key for row in Store(path).rows()]  # type: ignore[union-attr]
    assert promised <= set(held)
    assert len(held) == len(set(held))
    assert len(held) <= len(promised) + 6  # at most the one that each kill interrupted after its commit


def test_commands_add_list_show_history_and_export(
    tailcut: Callable[..., tuple[int, str, str]], tmp_path: Path, result: BenchResult
) -> None:
    codec.save(result, tmp_path / "result.json")
    place = ("--store", tmp_path / "results.sqlite")
    assert tailcut("results", "add", tmp_path / "result.json", "--model", "$m\x1b[2J", *place)[0] == 0
    assert "recorded before" in tailcut("results", "add", tmp_path / "result.json", *place)[1]
    code, out, _ = tailcut("results", "list", *place)
    assert code == 0
    assert "x1.50 [1.40, 1.60]" in out
    assert "\x1b" not in out  # a name from a file does not drive the terminal
    listed = json.loads(tailcut("results", "list", "--engine", "tailcut", "--json", *place)[1])
    assert [row["speedup"] for row in listed] == [1.5]
    shown = tailcut("results", "show", 1, "--json", *place)[1]
    assert codec.from_json(BenchResult, shown) == result
    code, out, _ = tailcut("results", "history", "-o", tmp_path / "pictures", *place)
    assert code == 0
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.read_text().count("<svg") == 1
    tailcut("results", "export", "-o", tmp_path / "all.csv", *place)
    assert (tmp_path / "all.csv").read_text().count("\n") == 3
    code, _, errors = tailcut("results", "show", 7, *place)
    assert (code, "holds no result 7" in errors) == (2, True)
    shutil.copy(tmp_path / "result.json", tmp_path / "bad.sqlite")
    code, _, errors = tailcut("results", "list", "--store", tmp_path / "bad.sqlite")
    assert (code, "not SQLite" in errors) == (2, True)
