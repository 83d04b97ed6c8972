"""OpenVINO with its sparse weight decompression switched on (CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE).

The plugin holds a matrix compressed only if the processor has AMX, the matrix is int8 with sides that are multiples of 64,
its activations are int8 too, and at least the given share of it is zeros (openvino, dnnl_fullyconnected_primitive.cpp).
Activations are float32 in a package, so the worker quantises them statically from what they are on the prompt; tokens may
therefore differ from the package's. The proof names every condition, and what the compiled model says that it runs.
"""

from pathlib import Path
from typing import Final

from tailcut.bench.clients import _paths, openvino
from tailcut.bench.environment import Recipe
from tailcut.bench.worker import Launch

TARGET: Final = "openvino"
LICENCE: Final = openvino.LICENCE
RECIPE: Final[Recipe] = openvino.RECIPE
RATE: Final = 0.4  # least share of zeros of a matrix that is held compressed


def available() -> str | None:
    return openvino.available()


def where() -> str:
    return openvino.where()


def launch(directory: Path, threads: int) -> Launch:
    return _paths.launch(where(), "openvino_client_worker.py", directory, threads, sparse_rate=RATE)
