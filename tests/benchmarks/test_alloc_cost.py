"""The benchmark of the allocators' costs runs, resumes, holds auto to its budget and renders (tiny model: no timing is judged)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def script(load_script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    module = load_script("alloc_cost")
    monkeypatch.setattr(module, "in_a_process", module.measure_once)  # a process takes seconds
    return module


@pytest.fixture
def words(tiny_model: Callable[..., Path], tmp_path: Path) -> list[str]:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number * 7919 % 1009} of many\n" for number in range(400)))
    given = ["run", str(tiny_model("llama")), "--work", str(tmp_path / "work"), "--calibration", str(text)]
    sizes = ["--samples", "3", "--seqlen", "24", "--commit", "abc"]
    return [*given, *sizes, "-o", str(tmp_path / "out.json"), "--names"]


def test_every_allocator_and_the_pruner_have_a_row(script: Any, words: list[str], tmp_path: Path) -> None:
    script.main([*words, *(name for name in script.NAMES if name != "auto")])
    (model,) = json.loads((tmp_path / "out.json").read_bytes())["models"].values()
    assert set(model["rows"]) == set(script.NAMES) - {"auto"}
    for name, (sample,) in model["rows"].items():
        assert 0 < sample["before_bytes"] <= sample["peak_bytes"]
        assert sample["s"] >= sample.get("scores_s", 0.0) + sum(sample.get("allocate_s", ()))
        assert len(sample.get("allocate_s", ())) == (0 if name == "sparsegpt" else 5)
    assert not any((tmp_path / "work").iterdir())


def test_auto_is_told_to_take_a_multiple_of_sparsegpt_s_time(
    script: Any, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="measure sparsegpt first"):
        script.main([*words, "auto"])
    script.main([*words, "auto", "sparsegpt", "--budget", "30"])
    (model,) = json.loads((tmp_path / "out.json").read_bytes())["models"].values()
    pruner, search = model["rows"]["sparsegpt"][0], model["rows"]["auto"][0]
    assert search["allowed_s"] == pytest.approx(30 * pruner["s"])
    assert search["winner"]
    shown = capsys.readouterr().out
    assert "| auto | " in shown
    assert f"auto chose {search['winner']}" in shown
    script.main([*words, "sparsegpt"])  # nothing is measured again
    assert list(json.loads((tmp_path / "out.json").read_bytes())["models"].values()) == [model]
