"""What the tests of cutting share: allocations for any tiny model, a calibration text, byte comparison."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tailcut.allocation import Allocation, LayerPlan, Pattern, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.make_model import make_model, settings_of
from tailcut.errors import MissingEnvironmentError

Allocate = Callable[..., Allocation]


@pytest.fixture(scope="session")
def allocate() -> Allocate:
    """allocate(directory, pattern, {part of a name: other pattern}) -> a plan for every linear."""

    def make(directory: Path, pattern: Pattern, others: Mapping[str, Pattern] | None = None) -> Allocation:
        plans = {}
        for linear in find_linears(Checkpoint(directory)):
            chosen = [value for part, value in (others or {}).items() if part in linear.name]
            plans[linear.name] = LayerPlan(chosen[0] if chosen else pattern)
        return Allocation(plans, {"allocator": "test"})

    return make


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2600 characters, which are as many tokens to the tiny tokenizer."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    numbers = [(37 * i * i + 11 * i) % 1009 for i in range(130)]
    path.write_text(" ".join(f"{number} sheep of {number % 13} farms" for number in numbers))
    return path


@pytest.fixture(scope="session")
def calibration(text: Path) -> Calibration:
    return Calibration(str(text), samples=6, seqlen=24, seed=1)


@pytest.fixture
def half() -> Unstructured:
    return Unstructured(0.5)


@pytest.fixture
def without_interpreter(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run code in a process of its own that compiles Triton's kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    return lambda code: subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def same_files() -> Callable[[Path, Path], bool]:
    """Whether two directories hold the same names and bytes."""
    return lambda a, b: files_of(a) == files_of(b)


@pytest.fixture(scope="module")
def make_or_skip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], object]], Path]:
    """The name of a packaged model and what finds its weights -> its directory; skips where the weights are not there."""

    def make(name: str, find: Callable[[], object]) -> Path:
        try:
            find()
        except MissingEnvironmentError as error:
            pytest.skip(str(error))
        out = tmp_path_factory.mktemp("models") / name
        make_model(name, out, settings_of())
        return out

    return make
