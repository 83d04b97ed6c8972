"""What the launches of several clients have in common."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tailcut.bench.worker import SCRIPTS, Launch
from tailcut.errors import InputError

# of this process, which would disturb another interpreter
DROP: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_PRELOAD")


def launch(
    python: str,
    script: str,
    directory: Path,
    threads: int,
    *,
    reads: tuple[str, str] = ("model.onnx", "make the package with `tailcut export --target`"),
    environment: Mapping[str, str] = MappingProxyType({}),
    **settings: object,
) -> Launch:
    """A worker of another interpreter on `directory`; nothing is fetched from a network.

    `reads`: a file that must be there, and what to say where it is not. `environment` is added to the worker's.
    """
    name, hint = reads
    if not (directory / name).is_file():
        raise InputError(f"{directory}: holds no {name}; {hint}")
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    body: Mapping[str, Any] = {"directory": str(directory.resolve()), "threads": threads, **settings}
    offline = {"PATH": os.defpath, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    return Launch(python, SCRIPTS / script, body, offline | dict(environment), DROP)
