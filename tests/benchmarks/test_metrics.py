"""The metrics benchmark runs, keeps raw samples and adds a model to a result (tiny models: no timing is judged)."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "metrics.py"


def bench(model: Path, out: Path, metrics: str) -> Any:
    arguments = [str(model), "--out", str(out), "--metrics", metrics, "--repeat", "1", "--samples", "2"]
    subprocess.run([sys.executable, str(SCRIPT), *arguments, "--seqlen", "16"], check=True, capture_output=True)
    return json.loads(out.read_text())


def test_samples_of_every_metric_and_a_second_model_beside_the_first(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    first = tiny_model("llama")
    models = bench(first, out, "stable-rank,owl")["models"]
    assert list(models) == [first.name]
    rows = models[first.name]["metrics"]
    assert {name: row["needs"] for name, row in rows.items()} == {"stable-rank": "spectrum", "owl": "block"}
    # owl needs no eigenvalues, so nothing is warmed
    assert [len(rows["stable-rank"][kind]) for kind in ("cold", "warm")] == [1, 1]
    assert [len(rows["owl"][kind]) for kind in ("cold", "warm")] == [1, 0]
    for row in rows.values():
        assert all(sample["s"] > 0 and 0 < sample["before_bytes"] <= sample["peak_bytes"] for sample in row["cold"])
    assert models[first.name]["machine"]["cores"] >= 1
    again = bench(first, out, "entropy")["models"][first.name]["metrics"]
    assert again == rows | {"entropy": again["entropy"]}
    second = tiny_model("opt")
    both = bench(second, out, "magnitude")["models"]
    assert both[first.name]["metrics"] == again
    assert set(both) == {first.name, second.name}
