"""A sparse copy of a tiny model, and packages made from it once a session."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

SparseModel = Callable[..., Path]


@pytest.fixture(scope="session")
def sparse_model(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> SparseModel:
    """sparse_model(family, sparsity=0.7, **overrides) -> directory whose block matrices hold that share of zeros."""
    made: dict[str, Path] = {}

    def make(family: str = "llama", sparsity: float = 0.7, **overrides: object) -> Path:
        key = f"{family} {sparsity} {sorted(overrides.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("sparse") / family
            shutil.copytree(tiny_model(family, **overrides), made[key])
            zero_blocks(made[key], sparsity)
        return made[key]

    return make


def zero_blocks(directory: Path, sparsity: float) -> None:
    """Zero the smallest weights of every matrix inside the blocks."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, array in tensors.items():
        if array.ndim == 2 and any(part in name for part in (".layers.", ".h.")):
            order = np.argsort(np.abs(array).ravel())
            changed = array.ravel().copy()
            changed[order[: round(sparsity * array.size)]] = 0
            tensors[name] = changed.reshape(array.shape)
    save_file(tensors, path, {"format": "pt"})
