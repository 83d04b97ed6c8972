"""transformers with compressed-tensors: the directory that `tailcut pack --format compressed-tensors` wrote.

vLLM reads the same `quantization_config` by the same package: see vllm_packed.py.
"""

from pathlib import Path
from typing import Final

from tailcut.bench.clients import PACKED
from tailcut.bench.environment import Recipe, installed_reason, python_of
from tailcut.bench.worker import SCRIPTS, Launch

TARGET: Final = PACKED
LICENCE: Final = "Apache-2.0"
_RECIPE: Final = Recipe(
    name="compressed-tensors",
    lock=Path(__file__).with_name("compressed_tensors.lock"),
    pythons=((3, 11), (3, 12), (3, 13)),
    probe="import torch, transformers, compressed_tensors; print(compressed_tensors.__version__)",
    licence=LICENCE,
    dependencies=True,
)
RECIPE: Final[Recipe | None] = _RECIPE
_DROP: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


def available() -> str | None:
    return installed_reason(_RECIPE)


def where() -> str:
    return str(python_of(_RECIPE))


def launch(directory: Path, threads: int) -> Launch:
    settings = {"directory": str(directory.resolve()), "threads": threads, "quantised": True}
    return Launch(where(), SCRIPTS / "hf_worker.py", settings, {}, _DROP)
