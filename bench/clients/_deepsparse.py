"""What the two ways to run DeepSparse share: its environment is the engine's (`tailcut engines install deepsparse`)."""

import os
from pathlib import Path
from typing import Final, Literal

from tailcut.bench.clients._paths import DROP
from tailcut.bench.engines import deepsparse as engine
from tailcut.bench.environment import Recipe
from tailcut.bench.worker import SCRIPTS, Launch

RECIPE: Final[Recipe | None] = engine.RECIPE


def available() -> str | None:
    return engine.available()


def where() -> str:
    return engine.where()


def launch_with(cache: Literal["external", "engine"], directory: Path, threads: int) -> Launch:
    """The worker over `directory`, which holds decode.onnx and prefill.onnx, and cached.onnx for the engine's cache."""
    settings = {"directory": str(directory.resolve()), "threads": threads, "cache": cache}
    environment = dict(engine.RECIPE.environment) | {"NUM_CORES": str(threads), "PATH": os.defpath}
    return Launch(where(), SCRIPTS / "deepsparse_client_worker.py", settings, environment, DROP)
