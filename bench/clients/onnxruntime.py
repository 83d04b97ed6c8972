"""A plain ONNX Runtime, without tailcut's kernels or its loader: what any program gets that opens model.onnx.

It runs in tailcut's own interpreter, whose onnxruntime is the plain wheel; the worker imports nothing of tailcut's.
"""

from pathlib import Path
from typing import Final

from tailcut.bench.clients import _paths
from tailcut.bench.engines import onnxruntime as engine
from tailcut.bench.environment import Recipe
from tailcut.bench.worker import Launch

TARGET: Final = "onnxruntime"
LICENCE: Final = "MIT"
RECIPE: Final[Recipe | None] = None


def available() -> str | None:
    return engine.available()


def where() -> str:
    return engine.where()


def launch(directory: Path, threads: int) -> Launch:
    return _paths.launch(where(), "onnxruntime_client_worker.py", directory, threads)
