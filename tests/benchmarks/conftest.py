"""Scripts of benchmarks/ as modules, and the words of a run that is small enough for a test."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Name of a script -> its module; it imports what lies beside it."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return importlib.import_module


@pytest.fixture
def small_run(tmp_path: Path) -> Callable[[str], list[str]]:
    """The model's word -> `run` on a few short windows of one text, with --work and -o in the test's directory."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number * 7919 % 1009} of many\n" for number in range(150)))
    given = ["--text", str(text), "--calibration", str(text), "--work", str(tmp_path / "work")]
    sizes = ["--samples", "3", "--seqlen", "24", "--context", "32", "--windows", "4", "--commit", "abc"]
    return lambda model: ["run", model, *given, *sizes, "-o", str(tmp_path / "out.json")]
