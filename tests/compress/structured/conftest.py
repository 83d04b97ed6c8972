"""Cut tiny models: made once a session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailcut.allocation import Allocation, LayerPlan, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress.discovery import find_linears
from tailcut.compress.structured_run import Structuring, cut_structured

Uneven = Callable[..., Path]


def rising(directory: Path, first: float, last: float) -> Allocation:
    """An allocation that takes more of each block than of the one before."""
    linears = find_linears(Checkpoint(directory))
    blocks = max(linear.block for linear in linears)
    share = {linear.name: first + (last - first) * linear.block / blocks for linear in linears}
    return Allocation({name: LayerPlan(Unstructured(ratio)) for name, ratio in share.items()}, {"allocator": "test"})


@pytest.fixture(scope="session")
def uneven(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Uneven:
    """uneven(family, **config overrides) -> a cut model whose blocks differ in heads (where they can) and in width."""
    made: dict[str, Path] = {}

    def make(family: str, **overrides: Any) -> Path:
        key = f"{family} {sorted(overrides.items())}"
        if key not in made:
            source = tiny_model(family, **overrides)
            made[key] = tmp_path_factory.mktemp("uneven") / family
            asked = Structuring(allocation=rising(source, 0.1, 0.7), importance="magnitude", multiple=8, refit=False)
            cut_structured(source, made[key], asked)
        return made[key]

    return make
