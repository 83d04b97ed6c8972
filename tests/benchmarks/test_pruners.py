"""The benchmark of the pruners runs, resumes and renders (on a tiny model: no quality is judged)."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return importlib.import_module("pruners")


def test_rows_are_measured_once_and_shown(
    script: Any, tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "rows.json"
    text.write_text("".join(f"line {number * 7919 % 1009} of many\n" for number in range(150)))
    words = ["run", str(tiny_model("llama")), "--text", str(text), "--calibration", str(text), "--work", str(tmp_path)]
    words += [
        "--samples",
        "3",
        "--seqlen",
        "24",
        "--context",
        "32",
        "--windows",
        "4",
        "--commit",
        "abc",
        "-o",
        str(out),
    ]
    words += ["--pruners", "wanda", "alps", "--targets", "0.5"]
    script.main(words)
    first = json.loads(out.read_bytes())
    assert set(first["rows"]) == {"dense", "wanda 0.5", "alps 0.5"}
    assert all(len(row["nll_32"]) == 4 for row in first["rows"].values())
    assert 0 < first["rows"]["alps 0.5"]["prune_s"] < first["rows"]["alps 0.5"]["compress_s"]
    assert first["rows"]["alps 0.5"]["sparsity"] == pytest.approx(0.5, abs=0.001)
    script.main([*words[:-1], "0.5", "2:4", "--seconds", "0"])
    assert json.loads(out.read_bytes()) == first  # nothing measured again, and no time for more
    shown = capsys.readouterr().out
    assert "| pruner | 50% | s at 50% |" in shown
    assert "| alps | " in shown
    assert "commit abc" in shown
    assert not (tmp_path / "variant").exists()
