"""transformers, in tailcut's own interpreter: the directory that `tailcut compress` wrote, as it is."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tailcut.bench.clients import HF
from tailcut.bench.environment import Recipe
from tailcut.bench.worker import SCRIPTS, Launch

TARGET: Final = HF
LICENCE: Final = "Apache-2.0"
RECIPE: Final[Recipe | None] = None


def available() -> str | None:
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    return f"{missing[0]} is not installed; run `pip install 'tailcut[compress]'`" if missing else None


def where() -> str:
    return sys.executable


def launch(directory: Path, threads: int) -> Launch:
    return Launch(where(), SCRIPTS / "hf_worker.py", {"directory": str(directory.resolve()), "threads": threads})
