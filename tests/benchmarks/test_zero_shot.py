"""The benchmark of zero-shot tasks renders, and where lm-eval is installed runs (on a tiny model: nothing is judged)."""

import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailcut import codec
from tailcut.accuracy import ModelAnswers, TaskFile, ZeroShot, rows_of


@pytest.fixture
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("zero_shot")


def test_the_table_shows_every_model_and_task(script: Any) -> None:
    models = (
        ModelAnswers("llama", "a", None, {"rte": {"acc": "1110"}, "boolq": {"acc": "11"}}),
        ModelAnswers("wanda-uniform-2of4", "b", 0.5, {"rte": {"acc": "0110"}, "boolq": {"acc": "10"}}),
    )
    files = {name: TaskFile(f"{name}.jsonl", "", count, 9, "1.0") for name, count in (("rte", 4), ("boolq", 2))}
    settings: dict[str, str | int | None] = {"limit": 4, "dtype": "float32"}
    result = ZeroShot(files, models, rows_of(models), settings, {"lm_eval": "0.4.13"})
    content = {
        "machine": {"accelerator": None, "cpu": "some cpu", "commit": "abc"},
        "calibration": {"file": "c4.jsonl", "samples": 8, "seqlen": 64, "seed": 0},
        "result": json.loads(codec.to_json(result)),
    }
    lines = script.render(content).splitlines()
    assert lines[0] == "| model | rte | boolq | mean | mean less dense | recovery |"
    assert lines[2].startswith("| dense | 75.0 ± 25.0 | 100.0 ± 0.0 | 87.5 ± 12.5 |")
    assert lines[3].startswith("| wanda uniform 2:4 | 50.0 ± 28.9 | 50.0 ± 50.0 | 50.0 ± 28.9 | -37.5 ±")
    assert "The first items: 4 of 9 rte, 2 of 9 boolq" in lines[-1]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (the extra `eval`)")
def test_variants_are_made_once_and_asked(script: Any, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "rows.json"
    text.write_text("".join(f"line {number * 7919 % 1009} of many\n" for number in range(150)))
    rows = [{"sentence1": f"It has {i}.", "sentence2": "It has.", "label": i % 2} for i in range(4)]
    (tmp_path / "rte_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["run", str(tiny_model("llama")), "--tasks", str(tmp_path), "--names", "rte", "--calibration", str(text)]
    words += ["--work", str(tmp_path), "--samples", "3", "--seqlen", "24", "--variants", "wanda uniform 0.5"]
    words += ["--commit", "abc", "-o", str(out)]
    script.main(words)
    first = json.loads(out.read_bytes())
    assert [model["name"] for model in first["result"]["models"]][1] == "wanda-uniform-0.5"
    assert first["result"]["models"][1]["sparsity"] == pytest.approx(0.5, abs=0.01)
    script.main(words)
    assert json.loads(out.read_bytes())["compress_s"] == {}
