"""The benchmark of a real 2:4 model, on a tiny one: what it keeps is what the model's own forward gives."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.allocation import NM, Allocation, LayerPlan
from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.perplexity import directory_nll, tokenise
from tailcut.compress.run import compress
from tailcut.windows import read_text

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_real_model_s_quality_from_run_to_table(
    device: str,
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    script: Any = importlib.import_module("gpu_quality")
    if device == "cpu":  # interpreting the kernels takes minutes; dense products stand in for them
        monkeypatch.setattr(script, "assemble_two_four", lambda weights, bits: script.assemble(weights))
    source, cut, text = tiny_model("llama", num_hidden_layers=1), tmp_path / "cut", tmp_path / "text.txt"
    pattern = LayerPlan(NM(2, 4))
    plan = Allocation({linear.name: pattern for linear in find_linears(Checkpoint(source))}, {})
    compress(source, plan, cut, pruner="magnitude", calibration=Calibration("demo"))
    text.write_text("A short text, which is read a byte at a time. " * 20)
    sizes = ["--windows", "2", "--context", "7", "--prompts", "2", "--prompt-tokens", "3", "--new-tokens", "4"]
    script.main(["run", str(cut), "--text", str(text), *sizes, "--device", device, "-o", str(tmp_path / "q.json")])
    found = json.loads((tmp_path / "q.json").read_bytes())
    assert found["sparsity"] == 0.5
    assert all(len(row["nll"]) == 2 and [len(t) for t in row["tokens"]] == [4, 4] for row in found["rows"].values())
    # the loop's losses are those of the model's own forward: bfloat16 arithmetic, so to two digits of three
    windows, _ = tokenise(cut, read_text(text), 7, 2)
    expected = directory_nll(cut, windows, device=device)
    np.testing.assert_allclose(found["rows"]["dense float32"]["nll"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["rows"]["2:4 bf16"]["nll"], expected, rtol=2e-2)
    # a gap is kept for each continuation that parts, and only for those
    dense = found["rows"]["dense bf16"]["tokens"]
    for name, gaps in found["gaps"].items():
        parted = [n for n, (a, b) in enumerate(zip(dense, found["rows"][name]["tokens"], strict=True)) if a != b]
        assert [gap["prompt"] for gap in gaps] == parted
        assert all(gap["gap"] >= 0 for gap in gaps)
    assert "| 2:4 int4 |" in capsys.readouterr().out
