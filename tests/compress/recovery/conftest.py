"""What the tests of recovery share: cut tiny models, their teachers, settings that take a second."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailcut.allocation import NM, Allocation, Bits, LayerPlan, Pattern, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.run import compress
from tailcut.recovering import Effort, Recovering

TinyModel = Callable[..., Path]
PATTERNS: dict[str, Pattern] = {"half": Unstructured(0.5), "2:4": NM(2, 4)}


@pytest.fixture(scope="session")
def cut(
    tiny_model: TinyModel, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """cut(family, "half" or "2:4", bits=None, dtype="float32") -> a directory of `compress`, made once a session."""
    made: dict[tuple[object, ...], Path] = {}

    def make(family: str = "llama", pattern: str = "half", bits: Bits | None = None, dtype: str = "float32") -> Path:
        key = family, pattern, bits, dtype
        if key not in made:
            source = tiny_model(family, dtype)
            plan = LayerPlan(PATTERNS[pattern], bits)
            plans = {linear.name: plan for linear in find_linears(Checkpoint(source))}
            made[key] = tmp_path_factory.mktemp("cut") / "model"
            compress(source, Allocation(plans, {}), made[key], calibration=calibration, device="cpu")
        return made[key]

    return make


@pytest.fixture
def settings(text: Path) -> Callable[..., Recovering]:
    """settings(methods, **changes): eight steps of four windows of 24 tokens on a CPU."""

    def make(*methods: str, **changes: Any) -> Recovering:
        base = Recovering(
            (str(text),), Effort(steps=8), methods, seqlen=24, batch=4, samples=8, rank=4, rate=3e-3, device="cpu"
        )
        return replace(base, **changes)

    return make
