"""Progress: plain lines where there is no terminal, bars where there is one, nothing on stdout."""

import os
import pty
import subprocess
import sys

import pytest

from tailcut.progress import console, silent

WORK = (
    "from tailcut.progress import console\n"
    "with console() as report:\n"
    "    [report('cut', i, 300, f'layer {i}') for i in range(301)]\n"
    "print('data')\n"
)


def test_without_a_terminal_there_are_few_plain_lines_on_stderr() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert done.stdout == "data\n"
    assert "\x1b" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "cut: 0/300 layer 0"
    assert lines[-1] == "cut: 300/300 layer 300"
    assert len(lines) <= 5  # 301 reports within a second or two; one line every five seconds at most


def test_on_a_terminal_there_are_bars() -> None:
    parent, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=child, env=environment, text=True, check=True
    )
    os.close(child)
    shown = os.read(parent, 1 << 16).decode()
    assert done.stdout == "data\n"
    assert "\x1b" in shown
    assert "300/300" in shown


def test_quiet_and_silent_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console(quiet=True) as report:
        report("cut", 1, 2)
    silent("cut", 1, 2, "note")
    assert capsys.readouterr() == ("", "")


def test_a_new_stage_begins_a_new_line(capsys: pytest.CaptureFixture[str]) -> None:
    with console() as report:
        report("a", 0, 9)
        report("b", 0, 9)
    assert capsys.readouterr().err == "a: 0/9\nb: 0/9\n"
