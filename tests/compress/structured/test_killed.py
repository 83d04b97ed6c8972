"""kill -9 in the middle of `tailcut structured`: nothing partial is left, and the same command ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TinyModel = Callable[..., Path]


def kill(source: Path, text: Path, base: Path, units: str, points: int) -> list[dict[str, Any]]:
    script = Path(__file__).parents[1] / "kill_structured.py"
    # one thread: the script forks after importing torch
    done = subprocess.run(
        [sys.executable, str(script), str(source), str(text), str(base), units, str(points)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["kills"]
    return found


def require_same(kills: list[dict[str, Any]]) -> None:
    for attempt in kills:
        assert attempt["status"] == -signal.SIGKILL, attempt
        assert attempt["whole"] in (None, True), attempt
        assert attempt["again"] in (None, 0), attempt
        assert attempt["same"], attempt
        assert not attempt["leftovers"], attempt


def test_kill_9_at_six_random_file_operations(tiny_model: TinyModel, text: Path, tmp_path: Path) -> None:
    kills = kill(tiny_model("llama"), text, tmp_path, "heads,mlp", 6)
    require_same(kills)
    assert any(0 < attempt["shards"] < 4 for attempt in kills), "no kill hit the cutting itself"


@pytest.mark.slow
@pytest.mark.parametrize("units", ["heads,mlp", "blocks"])
@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_kill_9_at_twenty_random_file_operations(
    name: str, units: str, tiny_model: TinyModel, text: Path, tmp_path: Path
) -> None:
    kills = kill(tiny_model(name), text, tmp_path, "mlp" if name == "gpt2" and units != "blocks" else units, 20)
    require_same(kills)
    assert any(not attempt["scored"] for attempt in kills), "no kill came before the scores"


@pytest.mark.slow
def test_kill_9_of_the_command_while_it_scores(
    tiny_model: TinyModel, text: Path, tmp_path: Path, same_files: Callable[[Path, Path], bool]
) -> None:
    """The command itself, killed by the clock: here most of the time goes into gradients, between file operations."""
    out, work = tmp_path / "out", tmp_path / "out.work"
    options = ["--ratio", "0.4", "--multiple", "8", "--calibration", str(text), "--samples", "60", "--seqlen", "32"]
    words = [sys.executable, "-m", "tailcut", "structured", str(tiny_model("llama")), *options, "--device", "cpu"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*words, "-o", str(tmp_path / "whole")], check=True, timeout=300, **quiet)  # type: ignore[call-overload]
    with subprocess.Popen([*words, "-o", str(out)], **quiet) as doomed:  # type: ignore[call-overload]
        until = time.monotonic() + 200
        while not work.exists() and time.monotonic() < until:
            time.sleep(0.01)
        doomed.send_signal(signal.SIGKILL)
        assert doomed.wait(timeout=60) == -signal.SIGKILL
    assert work.exists()
    assert not (work / "scores.safetensors").exists()
    assert not out.exists()
    subprocess.run([*words, "-o", str(out)], check=True, timeout=300, **quiet)  # type: ignore[call-overload]
    assert same_files(tmp_path / "whole", out)
    assert not work.exists()
