"""Killed at any moment, compress() goes on and ends in the same bytes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailcut.allocation import Allocation, Unstructured
from tailcut.compress.calibration import Calibration
from tailcut.compress.journal import Journal
from tailcut.compress.run import compress

TinyModel = Callable[..., Path]
Allocate = Callable[..., Allocation]


class Stopped(Exception):  # noqa: N818  (an interruption, not an error of the program)
    """Stands for the power cut."""


@pytest.mark.parametrize(
    ("pruner", "pack", "bits"), [("sparsegpt", False, None), ("magnitude", True, None), ("wanda", False, 4)]
)
def test_kill_9_at_ten_random_file_operations(
    pruner: str, pack: bool, bits: int | None, tiny_model: TinyModel, text: Path, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("kill_at.py")
    arguments = [str(tiny_model("gemma2")), str(text), str(tmp_path), pruner, "pack" if pack else "plain", str(bits)]
    # one thread: the script forks after importing torch
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert len(outcome["kills"]) == 10
    for kill in outcome["kills"]:
        assert kill["status"] == -9
        assert kill["resumed"] in (0, None)
        assert kill["same"], kill
        assert kill["leftovers"] == []
    assert any(kill["finished_shards"] for kill in outcome["kills"])  # else nothing was ever resumed


def interrupt_after(monkeypatch: pytest.MonkeyPatch, shards: int) -> list[str]:
    """Let `shards` shards be written, then stop; returns the list of shards written, which goes on growing."""
    written: list[str] = []
    store = Journal.store

    def counting(journal: Journal, shard: str, tensors: Any) -> Path:
        if len(written) == shards:
            written.append("stop")
            raise Stopped
        if shard not in written:
            written.append(shard)
        return store(journal, shard, tensors)

    monkeypatch.setattr(Journal, "store", counting)
    return written


def test_finished_blocks_are_not_pruned_again(
    tiny_model: TinyModel,
    allocate: Allocate,
    calibration: Calibration,
    half: Unstructured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_files: Callable[[Path, Path], bool],
) -> None:
    source = tiny_model("llama")
    allocation = allocate(source, half)
    compress(source, allocation, tmp_path / "whole", pruner="wanda", calibration=calibration)
    written = interrupt_after(monkeypatch, 2)
    with pytest.raises(Stopped):
        compress(source, allocation, tmp_path / "out", pruner="wanda", calibration=calibration)
    said: list[str] = []
    compress(
        source,
        allocation,
        tmp_path / "out",
        pruner="wanda",
        calibration=calibration,
        report=lambda stage, done, total, note="": said.append(note),
    )
    assert "going on after 2 finished blocks" in said
    after_stop = written[written.index("stop") + 1 :]
    assert after_stop == ["model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors"]
    assert same_files(tmp_path / "whole", tmp_path / "out")


def test_another_plan_starts_afresh(
    tiny_model: TinyModel,
    allocate: Allocate,
    calibration: Calibration,
    half: Unstructured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_files: Callable[[Path, Path], bool],
) -> None:
    source = tiny_model("llama")
    other = allocate(source, Unstructured(0.75))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Stopped):
            compress(source, allocate(source, half), tmp_path / "out", pruner="wanda", calibration=calibration)
    said: list[str] = []
    compress(
        source,
        other,
        tmp_path / "out",
        pruner="wanda",
        calibration=calibration,
        report=lambda stage, done, total, note="": said.append(note),
    )
    assert any("started afresh" in note for note in said)
    compress(source, other, tmp_path / "direct", pruner="wanda", calibration=calibration)
    assert same_files(tmp_path / "direct", tmp_path / "out")


def test_a_damaged_finished_shard_is_noticed(
    tiny_model: TinyModel,
    allocate: Allocate,
    calibration: Calibration,
    half: Unstructured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tailcut.errors import InputError

    source = tiny_model("llama")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Stopped):
            compress(source, allocate(source, half), tmp_path / "out", pruner="wanda", calibration=calibration)
    shard = next((tmp_path / "out.work" / "model").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged or truncated"):
        compress(source, allocate(source, half), tmp_path / "out", pruner="wanda", calibration=calibration)
