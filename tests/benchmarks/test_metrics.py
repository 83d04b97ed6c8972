"""The metrics benchmark runs, keeps raw samples and adds a model to a result (tiny models: no timing is judged)."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "metrics.py"
Bench = Callable[[Path, str], Any]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])  # it imports what lies beside it
    spec = importlib.util.spec_from_file_location("metrics_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """bench(model, metrics) -> the models in the result, after a run in this process (a new one takes seconds)."""
    out = tmp_path / "result.json"
    monkeypatch.setattr(script, "in_a_process", script.measure_once)

    def call(model: Path, metrics: str) -> Any:
        arguments = [str(model), "--out", str(out), "--metrics", metrics, "--repeat", "1", "--samples", "2"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, "--seqlen", "16"])
        script.main()
        return json.loads(out.read_text())["models"]

    return call


def test_samples_of_every_metric_and_a_second_model_beside_the_first(
    bench: Bench, tiny_model: Callable[..., Path]
) -> None:
    first, second = tiny_model("llama"), tiny_model("opt")
    models = bench(first, "stable-rank,entropy,owl")
    assert list(models) == [first.name]
    rows = models[first.name]["metrics"]
    assert {name: row["needs"] for name, row in rows.items()} == {
        "stable-rank": "spectrum",
        "entropy": "spectrum",
        "owl": "block",
    }
    # the first one fills the cache of eigenvalues, the second finds it full, owl needs none
    counts = {name: [len(row[kind]) for kind in ("cold", "warm")] for name, row in rows.items()}
    assert counts == {"stable-rank": [1, 1], "entropy": [0, 1], "owl": [1, 0]}
    assert all(sample["s"] > 0 for row in rows.values() for sample in row["cold"] + row["warm"])
    assert models[first.name]["machine"]["cores"] >= 1
    again = bench(first, "log-norm")[first.name]["metrics"]
    assert again == rows | {"log-norm": again["log-norm"]}
    both = bench(second, "magnitude")
    assert both[first.name]["metrics"] == again
    assert set(both) == {first.name, second.name}


def test_a_process_of_its_own_reports_a_sample(
    script: ModuleType, tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tiny_model("llama")), "--out", str(tmp_path / "r.json")])
    sample = script.in_a_process(script.parse(), "magnitude", tmp_path)
    assert sample["s"] > 0
    assert 0 < sample["before_bytes"] <= sample["peak_bytes"]
