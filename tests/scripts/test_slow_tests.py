"""CI's choice of slow tests: nothing slow is out of reach, and a change calls for what covers it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def chooser() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slow_tests", ROOT / "scripts" / "slow_tests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_slow_test_file_is_reached_by_some_source(chooser: ModuleType) -> None:
    targets = {target for tests in chooser.COVERS.values() for target in tests} - {"tests"}
    slow = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.slow" in path.read_text()]
    relative = [str(path.relative_to(ROOT)) for path in slow]
    lost = [path for path in relative if not any(path == t or path.startswith(f"{t}/") for t in targets)]
    assert lost == []


def test_every_covered_path_exists(chooser: ModuleType) -> None:
    assert [path for path in chooser.COVERS if not (ROOT / path).exists()] == []


def test_a_change_calls_for_the_tests_that_cover_it(chooser: ModuleType) -> None:
    assert "tests/compress" in chooser.covering(["compress/models/smollm2_135m.py"])
    assert "tests/export" not in chooser.covering(["compress/models/smollm2_135m.py"])
    assert chooser.covering(["docs/index.md", "compressor.txt"]) == []


def test_a_changed_test_file_calls_for_itself_once(chooser: ModuleType) -> None:
    itself = "tests/scripts/test_slow_tests.py"
    assert chooser.covering([itself]) == [itself]
    assert chooser.covering([itself, "Dockerfile"]) == ["tests/scripts"]


def test_pins_call_for_everything(chooser: ModuleType) -> None:
    assert chooser.covering(["constraints.txt", "bench/run.py"]) == ["tests"]
