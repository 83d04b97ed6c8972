"""Modules of Triton kernels, loaded only where they can run."""

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any, Final

import torch

_LEAST_CAPABILITY: Final = (8, 0)  # what Triton supports


@functools.cache
def kernels(load: Callable[[], Any], device: str) -> Any:  # noqa: ANN401  (Triton's kernels have no type)
    """The module that `load` imports, or None: no GPU, no Triton, or no C compiler, which Triton needs to launch."""
    compilers = (os.environ.get("CC"), shutil.which("cc"), shutil.which("gcc"), shutil.which("clang"))
    if device != "cuda" or not any(compilers) or torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
        return None
    try:
        return load()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "triton":
            raise
        return None
