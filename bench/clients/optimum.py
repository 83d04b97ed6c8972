"""optimum-onnx's ORTModelForCausalLM; in an environment of its own, as it needs a transformers older than 4.58.

It imports torch, for tensors alone. The lock has the version; where a CPU build of it is offered to pip, that one is taken,
elsewhere the default build with the CUDA libraries that it requires (`Recipe.dependencies`).
"""

from pathlib import Path
from typing import Final

from tailcut.bench.clients import _paths
from tailcut.bench.environment import Recipe, installed_reason, python_of
from tailcut.bench.worker import Launch

TARGET: Final = "optimum"
LICENCE: Final = "Apache-2.0"
RECIPE: Final = Recipe(
    name="optimum",
    lock=Path(__file__).with_name("optimum.lock"),
    pythons=((3, 11), (3, 12), (3, 13)),
    probe="from importlib.metadata import version; from optimum.onnxruntime import ORTModelForCausalLM; "
    "print(version('optimum-onnx'))",
    dependencies=True,
)


def available() -> str | None:
    return installed_reason(RECIPE)


def where() -> str:
    return str(python_of(RECIPE))


def launch(directory: Path, threads: int) -> Launch:
    return _paths.launch(where(), "hf_optimum_worker.py", directory, threads)
