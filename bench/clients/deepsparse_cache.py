"""DeepSparse 1.8 with the cache that the engine keeps: cached.onnx, token by token, never up to its capacity."""

from pathlib import Path
from typing import Final

from tailcut.bench.clients._deepsparse import RECIPE, available, launch_with, where
from tailcut.bench.engines.deepsparse import LICENCE
from tailcut.bench.worker import Launch

__all__ = ["LICENCE", "RECIPE", "TARGET", "available", "launch", "where"]
TARGET: Final = "deepsparse"


def launch(directory: Path, threads: int) -> Launch:
    return launch_with("engine", directory, threads)
