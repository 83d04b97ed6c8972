"""DeepSparse 1.8 on the static variant, keys and values in arrays of our own: prefill.onnx, then decode.onnx."""

from pathlib import Path
from typing import Final

from tailcut.bench.clients._deepsparse import RECIPE, available, launch_with, where
from tailcut.bench.engines.deepsparse import LICENCE
from tailcut.bench.worker import Launch

__all__ = ["LICENCE", "RECIPE", "TARGET", "available", "launch", "where"]
TARGET: Final = "deepsparse"


def launch(directory: Path, threads: int) -> Launch:
    return launch_with("external", directory, threads)
