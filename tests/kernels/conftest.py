"""A sparse tiny package and the kernels with AVX-512 and AMX in plain C++, each made once a session."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tailcut.kernels.build import LIBRARY, BuildError, build, find_compiler

Export = Callable[..., Path]


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with plain C++ in place of AVX-512 and AMX instructions; minutes to compile, for slow tests."""
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(f"the kernels cannot be compiled here: {error}")
    return build(tmp_path_factory.mktemp("emulated") / LIBRARY.name, emulate=True, jobs=os.cpu_count() or 1)


@pytest.fixture(scope="session")
def fused_package(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Export:
    """fused_package(family="llama", weights="float32", kv_cache=None) -> a package with fused.onnx (heads of 16)."""
    from tailcut.export.run import export

    made: dict[str, Path] = {}

    def make(family: str = "llama", weights: str = "float32", kv_cache: str | None = None) -> Path:
        key = f"{family}-{weights}-{kv_cache}"
        if key not in made:
            model = tiny_model(family, hidden_size=64, max_position_embeddings=512)
            made[key] = tmp_path_factory.mktemp("fused") / key
            export(model, made[key], weights=weights, kv_cache=kv_cache)
            assert (made[key] / "fused.onnx").is_file()
        return made[key]

    return make


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
