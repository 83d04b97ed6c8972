"""The speed benchmark runs on a tiny model: its timings are not judged, its bookkeeping is."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tailcut import codec
from tailcut.allocation import LayerScore, LayerScores
from tailcut.checkpoint import Checkpoint
from tailcut.compress.discovery import find_linears
from tailcut.kernels import library

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "alloc_latency.py"
needs_kernels = pytest.mark.skipif(library.problem() is not None, reason="tailcut's kernels are not compiled here")
Act = Callable[[str], str]


@pytest.fixture
def act(tiny_model: Callable[..., Path], tmp_path: Path) -> Act:
    """act(action) -> what the script printed; its files are in tmp_path / "w", the result in tmp_path."""
    model = tiny_model("llama")
    linears = find_linears(Checkpoint(model))
    layers = tuple(LayerScore(x.name, x.block, x.shape, {"alpha_peak": 3.0 + x.block}) for x in linears)
    codec.save(LayerScores("tiny", layers, 1), tmp_path / "scores.json")
    paths = ["--work", str(tmp_path / "w"), "-o", str(tmp_path / "result.json")]
    little = ["--speedups", "1,1000", "--rounds", "1", "--steps", "4", "--blocks", "2"]

    def call(action: str) -> str:
        words = [sys.executable, str(SCRIPT), action, str(model), str(tmp_path / "scores.json"), *paths, *little]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@needs_kernels
def test_a_package_for_each_speed_and_a_reason_for_what_is_out_of_reach(act: Act, tmp_path: Path) -> None:
    act("table")
    act("packages")
    assert json.loads((tmp_path / "w" / "cost.json").read_bytes())["engine"] == "tailcut"
    first, second = json.loads((tmp_path / "w" / "rows.json").read_bytes())
    # a speed of 1 needs no cut
    assert (first["asked"], first["sparsity"], first["package"]) == (1.0, 0.0, "package-1")
    assert float(first["plan"]["predicted_speedup"]) == pytest.approx(1.0)
    assert "out of reach" in second["reason"]


@needs_kernels
@pytest.mark.slow
def test_predictions_are_benched(act: Act, tmp_path: Path) -> None:
    act("table")
    act("packages")
    shown = act("bench")
    first, _ = json.loads((tmp_path / "result.json").read_bytes())["rows"]
    # the bench may refuse timings of so small a model; it says why
    assert first["reason"] or first["measured"]["low"] <= first["measured"]["value"] <= first["measured"]["high"]
    assert "| 1000 | a speedup of 1000" in shown
