"""A worker may die, hang, print or lie; the bench gets an answer or one sentence."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tailcut.bench.worker import Launch, Worker, WorkerError, last_words

ROOT = Path(__file__).resolve().parents[2]


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_prints_of_a_library_do_not_reach_a_frame(launch: Launch) -> None:
    with Worker(launch) as worker:
        opened, _ = worker.ask("open", **launch.settings)
        assert opened == {"load_seconds": 0.25}
        body, arrays = worker.ask("echo", {"x": np.arange(6).reshape(2, 3)}, text="ü")
        assert body["body"]["text"] == "ü"
        assert arrays["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert worker.close() > 1_000_000  # bytes: even an idle Python holds more than a megabyte


def test_an_assertion_that_ends_the_process_is_quoted(launch: Launch) -> None:
    with (
        Worker(launch) as worker,
        pytest.raises(WorkerError, match=r"'open' \(exit code 1\).*Assertion at .*925") as seen,
    ):
        worker.ask("open", die="open", **launch.settings)
    assert "0x00007f" not in str(seen.value)


def test_a_segfault_is_named(launch: Launch) -> None:
    with Worker(launch) as worker:
        worker.ask("open", die="decode", **launch.settings)
        with pytest.raises(WorkerError, match="SIGSEGV"):
            worker.ask("decode", steps=1)
        with pytest.raises(WorkerError):
            worker.ask("decode", steps=1)


def test_a_worker_killed_from_outside_is_named(launch: Launch) -> None:
    with Worker(launch) as worker:
        worker.ask("open", **launch.settings)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="SIGKILL"):
            worker.ask("decode", steps=1)


def test_a_hanging_worker_is_ended(launch: Launch) -> None:
    with Worker(launch, timeout_s=5.0) as worker:
        worker.ask("open", **launch.settings)
        worker.timeout_s = 0.3
        with pytest.raises(WorkerError, match=r"no answer to 'hang'"):
            worker.ask("hang")
        assert not alive(worker.pid)


def test_a_broken_frame_is_an_error(launch: Launch) -> None:
    with Worker(launch) as worker:
        worker.ask("open", **launch.settings)
        with pytest.raises(WorkerError, match="broken frame"):
            worker.ask("garbage")


def test_an_exception_is_an_answer(launch: Launch) -> None:
    with Worker(launch) as worker:
        worker.ask("open", die="prefill", **launch.settings)
        with pytest.raises(WorkerError, match="could not prefill: RuntimeError: prefill graph"):
            worker.ask("prefill", repeats=1)
        worker.ask("describe")  # and it lives on


def test_an_unknown_command_is_an_error(launch: Launch) -> None:
    with Worker(launch) as worker, pytest.raises(WorkerError, match="unknown command 'fly'"):
        worker.ask("fly")


def test_a_missing_interpreter_is_one_sentence(launch: Launch) -> None:
    with pytest.raises(WorkerError, match="cannot start /nowhere/python"):
        Worker(replace(launch, python="/nowhere/python"))


def test_no_worker_outlives_the_bench(launch: Launch) -> None:
    code = (
        "import os, sys; from pathlib import Path; from tailcut.bench.worker import Launch, Worker;"
        f"w = Worker(Launch(sys.executable, Path({str(launch.script)!r}), {{}}));"
        "w.ask('open', ms=1.0); print(w.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_last_words_prefer_lines_that_tell() -> None:
    assert last_words(["banner", "Assertion at x.cpp:1", "Backtrace:", "12# 0xdead", "bye"]).endswith(
        "Assertion at x.cpp:1"
    )
    assert last_words(["one", "two"]) == "; it said: one | two"
    assert "nothing" in last_words([])
