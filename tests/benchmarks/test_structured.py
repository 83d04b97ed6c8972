"""The structured-pruning benchmark on a tiny model: rows, going on, and refusing rows of other settings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def test_rows_go_on_and_are_not_mixed(
    load_script: Callable[[str], Any],
    small_run: Callable[[str], list[str]],
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = load_script("structured")
    words = [*small_run(str(tiny_model("llama"))), "--multiple", "8", "--ratios", "0.5"]
    script.main([*words, "--rows", "magnitude", "whole blocks, first order"])
    first = json.loads((tmp_path / "out.json").read_bytes())
    assert list(first["rows"]) == ["dense", "magnitude at 0.5", "whole blocks, first order at 0.5"]
    assert len(first["rows"]["magnitude at 0.5"]["nll"]) == 4
    assert 0.4 < first["rows"]["magnitude at 0.5"]["ratio_removed"] < 0.6
    assert not any((tmp_path / "work").iterdir())

    monkeypatch.setattr(script, "directory_nll", lambda *a, **k: np.ones(4))  # rows that are there are not made again
    script.main([*words, "--rows", "magnitude", "Wanda summed", "LLM-Pruner first order, alpha ratios"])
    again = json.loads((tmp_path / "out.json").read_bytes())["rows"]
    assert again["magnitude at 0.5"] == first["rows"]["magnitude at 0.5"]
    assert again["Wanda summed at 0.5"]["nll"] == [1.0] * 4
    assert "| LLM-Pruner first order, alpha ratios | 50% |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other settings"):
        script.main([*words, "--seqlen", "16"])
