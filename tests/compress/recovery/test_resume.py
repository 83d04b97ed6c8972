"""Killed at any moment, a recovery goes on and ends in the bytes of one that was not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailcut.compress.recover import recover
from tailcut.compress.recovery._state import read_state
from tailcut.errors import InputError
from tailcut.recovering import Effort, Recovering, try_recovery

TinyModel = Callable[..., Path]
Settings = Callable[..., Recovering]


def kill(student: Path, teacher: Path, text: Path, base: Path, methods: str, points: int) -> dict[str, Any]:
    script = Path(__file__).parents[1] / "kill_recover.py"
    # one thread: the script forks after importing torch
    done = subprocess.run(
        [sys.executable, str(script), str(student), str(teacher), str(text), str(base), methods, str(points)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def require_same(found: dict[str, Any]) -> None:
    for attempt in found["kills"]:
        assert attempt["status"] == -9, attempt
        assert attempt["again"] == 0, attempt
        assert attempt["same"], attempt


def test_kill_9_of_least_squares_and_distillation(
    cut: Callable[..., Path], tiny_model: TinyModel, text: Path, tmp_path: Path
) -> None:
    found = kill(cut("llama"), tiny_model("llama"), text, tmp_path, "least-squares,distill", 5)
    require_same(found)
    assert any(attempt["checkpoints"] for attempt in found["kills"]), "no kill hit the learning itself"


@pytest.mark.slow
@pytest.mark.parametrize("methods", ["blockwise,lora", "distill"])
def test_kill_9_at_ten_random_file_operations(
    methods: str, cut: Callable[..., Path], tiny_model: TinyModel, text: Path, tmp_path: Path
) -> None:
    require_same(kill(cut("gemma2", "2:4", 4), tiny_model("gemma2"), text, tmp_path, methods, 10))


class Stopped(Exception):  # noqa: N818  (an interruption, not an error of the program)
    """Stands for the power cut."""


def stopper(stage: str, at: int) -> Callable[..., None]:
    def report(name: str, done: int, total: int, note: str = "") -> None:
        if name == stage and done >= at:
            raise Stopped

    return report


def test_a_budget_in_minutes_counts_the_minutes_of_all_processes(
    cut: Callable[..., Path], tiny_model: TinyModel, settings: Settings, tmp_path: Path
) -> None:
    asked, out = settings("distill", budget=Effort(minutes=3 / 60), patience=24), tmp_path / "out"
    with pytest.raises(Stopped):
        recover(cut("llama"), tiny_model("llama"), out, asked, report=stopper("distill", 2))
    result = recover(cut("llama"), tiny_model("llama"), out, asked)
    (stage,) = result.stages
    assert stage.ended == "the budget is spent"
    assert stage.seconds >= 3.0
    steps, seconds = ([getattr(point, name) for point in stage.curve] for name in ("step", "seconds"))
    assert steps == sorted(steps)
    assert seconds == sorted(seconds)
    assert steps[0] == 0
    assert try_recovery(out) == result


def test_other_settings_start_afresh_and_another_mask_is_refused(
    cut: Callable[..., Path], tiny_model: TinyModel, settings: Settings, tmp_path: Path
) -> None:
    out, told = tmp_path / "out", list[str]()
    with pytest.raises(Stopped):
        recover(cut("llama"), tiny_model("llama"), out, settings("distill"), report=stopper("distill", 3))
    state = next((tmp_path / "out.work").glob("**/learning.safetensors"))
    with pytest.raises(InputError, match="checkpoint of another mask"):
        read_state(state, {}, None, "0" * 64)  # type: ignore[arg-type]  # refused before the optimiser is looked at
    recover(
        cut("llama"), tiny_model("llama"), out, settings("distill", seed=9),
        report=lambda stage, done, total, note="": told.append(note),
    )  # fmt: skip
    assert any("started afresh" in note for note in told)


def test_a_checkpoint_of_another_model_s_mask_is_refused_and_nothing_is_written(
    cut: Callable[..., Path], tiny_model: TinyModel, settings: Settings, tmp_path: Path
) -> None:
    """Settings that match do not make a checkpoint match: whoever copies work directories about is told."""
    for pattern in ("half", "2:4"):
        with pytest.raises(Stopped):
            recover(
                cut("llama", pattern), tiny_model("llama"), tmp_path / pattern, settings("distill"),
                report=stopper("distill", 3),
            )  # fmt: skip
    mine, other = (next((tmp_path / f"{name}.work").glob("**/learning.safetensors")) for name in ("half", "2:4"))
    mine.write_bytes(other.read_bytes())
    with pytest.raises(InputError, match=r"checkpoint of another mask.*remove"):
        recover(cut("llama"), tiny_model("llama"), tmp_path / "half", settings("distill"))
    assert not (tmp_path / "half").exists()


def test_learning_ends_early_with_the_best_weights_on_heldout_text(
    cut: Callable[..., Path], tiny_model: TinyModel, settings: Settings, tmp_path: Path
) -> None:
    """A rate far too high makes every look worse than the start: what is kept is the start."""
    asked = settings("distill", rate=0.3, patience=3, budget=Effort(steps=24))
    result = recover(cut("llama"), tiny_model("llama"), tmp_path / "out", asked)
    (stage,) = result.stages
    best = min(stage.curve, key=lambda point: point.heldout)
    assert stage.best_step == best.step
    assert stage.steps < 24
    assert "no better in 3 looks" in stage.ended
    assert result.heldout_kl_after == pytest.approx(best.heldout, rel=0.02)  # which leaves out the last of 24 positions
    if best.step == 0:
        assert any("no better on the held-out text" in note for note in result.notes)
