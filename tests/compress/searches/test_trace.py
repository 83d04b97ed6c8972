"""The journal of a search: what was measured is not measured again, and what a kill left of a line is dropped."""

import json
from pathlib import Path

import pytest

from tailcut.compress.searches._trace import Record, Trace, open_trace, read_trace
from tailcut.errors import InputError


def never() -> float:
    raise AssertionError("measured again")


def filled(path: Path, count: int = 3) -> Trace:
    trace = open_trace(path, "task")
    for number in range(count):
        trace.measure(f"plan{number}", "evolve", f"label {number}", 96, lambda number=number: 1.0 + number)
    trace.close()
    return trace


def test_what_was_measured_is_read_back(tmp_path: Path) -> None:
    first = filled(tmp_path / "t.jsonl")
    assert read_trace(tmp_path / "t.jsonl") == tuple(first.records)
    second = open_trace(tmp_path / "t.jsonl", "task")
    assert second.seconds == 0.0  # charged only when it is asked for
    values = [second.measure(f"plan{number}", "evolve", "", 96, never) for number in range(3)]
    assert values == [1.0, 2.0, 3.0]
    assert second.spent == first.spent
    assert second.counts == {"evolve": 3}


def test_a_known_plan_is_counted_once(tmp_path: Path) -> None:
    trace = filled(tmp_path / "t.jsonl", 1)
    assert trace.measure("plan0", "evolve", "", 96, never) == 1.0
    assert trace.counts == {"evolve": 1}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_measured_again(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    filled(path)
    path.write_bytes(path.read_bytes()[:-cut])
    trace = open_trace(path, "task")
    assert set(trace.earlier) == {"plan0", "plan1"}
    for number in range(3):
        trace.measure(f"plan{number}", "evolve", "", 96, lambda: 3.0)
    trace.close()
    assert [record.kl for record in read_trace(path)] == [1.0, 2.0, 3.0]


def test_another_task_begins_anew(tmp_path: Path) -> None:
    filled(tmp_path / "t.jsonl")
    trace = open_trace(tmp_path / "t.jsonl", "another task")
    trace.close()
    assert trace.earlier == {}
    assert read_trace(tmp_path / "t.jsonl") == ()


def test_an_infinite_divergence_survives(tmp_path: Path) -> None:
    trace = open_trace(tmp_path / "t.jsonl", "task")
    trace.measure("plan", "final", "", 1, lambda: float("inf"))
    trace.close()
    assert read_trace(tmp_path / "t.jsonl")[0].kl == float("inf")


def test_other_files_are_no_traces(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("hello\n")
    with pytest.raises(InputError, match="not the trace of a search"):
        read_trace(tmp_path / "a.jsonl")
    filled(tmp_path / "b.jsonl")
    with (tmp_path / "b.jsonl").open("a") as stream:
        stream.write(json.dumps({"unknown": 1}) + "\n")
    with pytest.raises(InputError, match="another version"):
        open_trace(tmp_path / "b.jsonl", "task")


def test_without_a_file_nothing_is_kept() -> None:
    trace = open_trace(None, "task")
    assert trace.measure("plan", "final", "", 1, lambda: 2.0) == 2.0
    assert [record.key for record in trace.records] == ["plan"]
    assert isinstance(trace.records[0], Record)
