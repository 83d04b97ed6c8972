"""The journal of a run directory: done once, resumed after a kill, repeated only downstream of a change."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tailcut.errors import InputError
from tailcut.stages import MARKS, Stage, run_stages


class Street:
    """Three stages, b after a and c after b, that log what they do."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, list[str]()
        self.settings: dict[str, dict[str, object]] = {"a": {"x": 1}, "b": {}, "c": {}}
        self.break_at: str | None = None

    def work(self, name: str) -> Callable[[], None]:
        def run() -> None:
            self.log.append(name)
            (self.root / f"{name}.txt").write_text(f"{name} {self.settings[name]}")
            if self.break_at == name:
                raise KeyboardInterrupt

        return run

    def run(self) -> list[str]:
        self.log.clear()
        after = {"a": (), "b": ("a",), "c": ("b",)}
        stages = [Stage(n, after[n], self.settings[n], (f"{n}.txt",), self.work(n)) for n in "abc"]
        run_stages(self.root, stages, lambda name, skipped: None)
        return list(self.log)


@pytest.fixture
def street(tmp_path: Path) -> Street:
    return Street(tmp_path)


def test_each_stage_runs_once(street: Street) -> None:
    assert street.run() == ["a", "b", "c"]
    assert street.run() == []


def test_a_changed_setting_repeats_what_is_downstream_of_it(street: Street) -> None:
    street.run()
    street.settings["b"] = {"new": True}
    assert street.run() == ["b", "c"]
    street.settings["c"] = {"y": 2}
    assert street.run() == ["c"]


def test_going_back_to_an_old_setting_does_not_trust_the_newer_output(street: Street) -> None:
    street.run()
    street.settings["a"] = {"x": 2}
    street.run()
    street.settings["a"] = {"x": 1}
    assert street.run() == ["a", "b", "c"]
    assert (street.root / "a.txt").read_text() == "a {'x': 1}"


def test_a_missing_output_is_made_again(street: Street) -> None:
    street.run()
    (street.root / "b.txt").unlink()
    assert street.run() == ["b"]


def test_an_interrupted_stage_is_not_done(street: Street) -> None:
    street.break_at = "b"
    with pytest.raises(KeyboardInterrupt):
        street.run()
    street.break_at = None
    assert street.run() == ["b", "c"]


def test_an_interrupted_repeat_does_not_count_as_the_old_one(street: Street) -> None:
    """The mark goes before the output does: half a new output must not pass for the old one."""
    street.run()
    street.settings["b"], street.break_at = {"new": 1}, "b"
    with pytest.raises(KeyboardInterrupt):
        street.run()
    street.settings["b"], street.break_at = {}, None
    assert street.run()[0] == "b"


def test_a_damaged_mark_means_not_done(street: Street) -> None:
    street.run()
    (street.root / MARKS / "c").write_bytes(b"")
    assert street.run() == ["c"]


def test_a_stage_without_its_output_is_reported(tmp_path: Path) -> None:
    stage = Stage("s", (), {}, ("never.txt",), lambda: None)
    with pytest.raises(InputError, match=r"stage s ended without its output never\.txt"):
        run_stages(tmp_path, [stage], lambda name, skipped: None)
    assert not (tmp_path / MARKS / "s").exists()


KILLED = """
import os, pathlib, signal, sys
from tailcut import stages
root, fatal, count = pathlib.Path(sys.argv[1]), int(sys.argv[2]), 0
def step():
    global count
    count += 1
    if count == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
def trace(frame, event, argument):
    if "tailcut" in frame.f_code.co_filename:
        step()
    return trace
def work(name):
    def run():
        from tailcut.files import write_file
        write_file(root / name, (name * 100).encode())
    return run
sys.settrace(trace)
stages.run_stages(root, [stages.Stage(n, (), {}, (n,), work(n)) for n in ("one", "two")], lambda n, s: None)
"""


@pytest.mark.parametrize("line", [10, 25, 40, 55, 70, 85, 100, 115, 130])
def test_kill_at_any_line_then_resume_gives_the_same_bytes(line: int, tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(line)], check=False)
    assert killed.returncode == -9
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "0"], check=False)
    assert done.returncode == 0
    assert {path.name for path in tmp_path.iterdir() if ".tmp-" not in path.name} == {"one", "two", MARKS}
    assert (tmp_path / "one").read_bytes() == b"one" * 100
    assert (tmp_path / "two").read_bytes() == b"two" * 100
