"""The benchmark of the pruners runs, resumes and renders (on a tiny model: no quality is judged)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("pruners")


def test_rows_are_measured_once_and_shown(
    script: Any,
    small_run: Callable[[str], list[str]],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, out = small_run(str(tiny_model("llama"))), tmp_path / "out.json"
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
