"""A sparse tiny package, made once a session."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file


@pytest.fixture(scope="session")
def package(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bitmask package of a tiny Llama with 70 % zeros; copy it before changing it."""
    from tailcut.export.run import export

    base = tmp_path_factory.mktemp("package")
    shutil.copytree(tiny_model("llama"), base / "model")
    file = base / "model" / "model.safetensors"
    tensors = load_file(file)
    for name, array in tensors.items():
        if ".layers." in name and array.ndim == 2:
            tensors[name] = np.where(np.abs(array) < np.quantile(np.abs(array), 0.7), np.float32(0), array)
    save_file(tensors, file, {"format": "pt"})
    export(base / "model", base / "package")
    return base / "package"
