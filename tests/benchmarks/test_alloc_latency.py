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


@needs_kernels
def test_a_row_for_each_speed_and_a_reason_for_what_is_out_of_reach(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model("llama")
    linears = find_linears(Checkpoint(model))
    layers = tuple(LayerScore(x.name, x.block, x.shape, {"alpha_peak": 3.0 + x.block}) for x in linears)
    codec.save(LayerScores("tiny", layers, 1), tmp_path / "scores.json")
    out = tmp_path / "result.json"
    words = [str(model), str(tmp_path / "scores.json"), "--work", str(tmp_path / "w"), "-o", str(out)]
    little = ["--speedups", "1,1000", "--rounds", "1", "--steps", "4", "--blocks", "2"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "run", *words, *little], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_bytes())
    assert content["table"]["engine"] == "tailcut"
    first, second = content["rows"]
    # a speed of 1 needs no cut, so both sides are the same package but for its bytes
    assert (first["asked"], first["sparsity"]) == (1.0, 0.0)
    assert float(first["plan"]["predicted_speedup"]) == pytest.approx(1.0)
    assert "out of reach" in second["reason"]
    assert "| 1000 | a speedup of 1000" in done.stdout
