"""transformers 4.57, the last release before 5: does a directory that 5 wrote mean the same to it?"""

from pathlib import Path
from typing import Final

from tailcut.bench.clients import HF
from tailcut.bench.environment import Recipe, installed_reason, python_of
from tailcut.bench.worker import SCRIPTS, Launch

TARGET: Final = HF
LICENCE: Final = "Apache-2.0"
_RECIPE: Final = Recipe(
    name="transformers4",
    lock=Path(__file__).with_name("transformers4.lock"),
    pythons=((3, 11), (3, 12), (3, 13)),
    probe="import torch, transformers; print(transformers.__version__)",
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
    settings = {"directory": str(directory.resolve()), "threads": threads}
    return Launch(where(), SCRIPTS / "hf_worker.py", settings, {}, _DROP)
