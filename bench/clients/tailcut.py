"""tailcut itself, as the rows to compare with: its own kernels inside ONNX Runtime, on the package of its own target."""

from pathlib import Path
from typing import Final

from tailcut.bench.clients import _paths
from tailcut.bench.engines import tailcut as engine
from tailcut.bench.environment import Recipe
from tailcut.bench.worker import Launch

TARGET: Final = "tailcut"
LICENCE: Final = "Apache-2.0"
RECIPE: Final[Recipe | None] = None


def available() -> str | None:
    return engine.available()


def where() -> str:
    return engine.where()


def launch(directory: Path, threads: int) -> Launch:
    return _paths.launch(where(), "tailcut_client_worker.py", directory, threads)
