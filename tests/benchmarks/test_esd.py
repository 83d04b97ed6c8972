"""The spectra benchmark runs and its parts add up (on a tiny model: no timing is judged)."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "esd.py"


@pytest.fixture
def esd(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("esd", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LLAMA_7B", {(32, 32): 4, (32, 64): 3})
    return module


def test_result_holds_raw_times_memory_and_the_extrapolation(
    esd: ModuleType, tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["esd.py", str(tiny_model("llama")), "--out", str(out)])
    esd.main()
    result = json.loads(out.read_text())
    assert len(result["per_matrix"]) == result["model"]["matrices"] == 21
    assert result["seconds"]["matrices"] == pytest.approx(sum(row["s"] for row in result["per_matrix"]))
    assert 0 < result["memory_peak"]["anonymous_bytes"] <= result["memory_peak"]["rss_bytes"]
    one = result["llama_7b"]["one_matrix_s"]
    assert result["llama_7b"]["from_one_matrix_each_s"] == pytest.approx(4 * one["32x32"] + 3 * one["32x64"])
    assert result["machine"]["cores"] >= 1
    assert len(result["load_average_at_start"]) == 3
