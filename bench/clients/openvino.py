"""OpenVINO's CPU plugin on the package's own model.onnx, computing in float32; in the environment of its engines."""

from pathlib import Path
from typing import Final

from tailcut.bench.clients import _paths
from tailcut.bench.engines import openvino_int8
from tailcut.bench.environment import Recipe, installed_reason, python_of
from tailcut.bench.worker import Launch

TARGET: Final = "openvino"
LICENCE: Final = "Apache-2.0"
RECIPE: Final[Recipe] = openvino_int8.RECIPE


def available() -> str | None:
    return installed_reason(RECIPE)


def where() -> str:
    return str(python_of(RECIPE))


def launch(directory: Path, threads: int) -> Launch:
    return _paths.launch(where(), "openvino_client_worker.py", directory, threads, sparse_rate=None)
