"""Which GPU this machine has and whether it can be used, asked of the driver: nothing here imports torch.

The driver's library is loaded with ctypes; asking it for devices makes no context and takes no memory on the GPU.
"""

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from tailcut.bench.machine import versions_of

LEAST_CAPABILITY: Final = (8, 0)  # bfloat16 and 2:4 on tensor cores
_LIBRARY: Final = "libcuda.so.1"
_MAJOR, _MINOR, _PROCESSORS, _L2 = 75, 76, 16, 38  # cuDeviceGetAttribute's numbers
_PACKAGES: Final = ("torch", "triton", "transformers", "torchao", "numpy", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU, as the driver describes it."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    l2_bytes: int
    processors: int
    driver_cuda: str  # the newest CUDA version that the driver runs


class _AbsentError(Exception):
    """Why there is no GPU, in half a sentence."""


def gpu_problem(*, triton: bool = False) -> str | None:
    """None if torch can compute on a GPU here (and, if asked, Triton is there), else why not and what to do."""
    try:
        gpu = find_gpu()
    except _AbsentError as reason:
        return f"{reason}; an NVIDIA GPU of compute capability 8.0 or more is needed"
    if gpu.capability < LEAST_CAPABILITY:
        found = ".".join(map(str, gpu.capability))
        return f"{gpu.name} has compute capability {found}, 8.0 (Ampere) or more is needed"
    return _missing_packages(triton)


def _missing_packages(triton: bool) -> str | None:
    if find_spec("torch") is None:
        return "the package torch is not installed; install tailcut with its gpu extra: pip install 'tailcut[gpu]'"
    if not torch_has_cuda():
        return "the installed torch is a CPU build; install a CUDA build of torch"
    if triton and find_spec("triton") is None:
        return "the package triton is not installed; install tailcut with its gpu extra: pip install 'tailcut[gpu]'"
    return None


def find_gpu() -> Gpu:
    """Ask the driver for device 0; _AbsentError says why there is none."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise _AbsentError(f"no NVIDIA driver ({_LIBRARY}) is on this machine") from None
    if (status := driver.cuInit(0)) != 0:
        raise _AbsentError(f"the NVIDIA driver finds no GPU (cuInit says {status})")
    device = ctypes.c_int()
    if (status := driver.cuDeviceGet(ctypes.byref(device), 0)) != 0:
        raise _AbsentError(f"the NVIDIA driver finds no GPU (cuDeviceGet says {status})")
    return _described(driver, device)


def _described(driver: ctypes.CDLL, device: ctypes.c_int) -> Gpu:
    name, memory, newest = ctypes.create_string_buffer(256), ctypes.c_size_t(), ctypes.c_int()
    driver.cuDeviceGetName(name, 256, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    driver.cuDriverGetVersion(ctypes.byref(newest))

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    return Gpu(
        name=name.value.decode(errors="replace"),
        capability=(attribute(_MAJOR), attribute(_MINOR)),
        memory_bytes=int(memory.value),
        l2_bytes=attribute(_L2),
        processors=attribute(_PROCESSORS),
        driver_cuda=f"{newest.value // 1000}.{newest.value % 1000 // 10}",
    )


def torch_has_cuda() -> bool:
    """Whether the installed torch was built for CUDA: read from its version file, without importing it."""
    found = find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return False
    try:
        text = (Path(next(iter(found.submodule_search_locations))) / "version.py").read_text()
    except OSError:
        return False
    return re.search(r"^cuda\b[^=]*=\s*['\"]\d", text, re.MULTILINE) is not None


def describe_gpu() -> Mapping[str, Any]:
    """For result files: the GPU, its driver and the packages that matter. No host or user names."""
    gpu = find_gpu()
    return {
        "name": gpu.name,
        "capability": ".".join(map(str, gpu.capability)),
        "memory_bytes": gpu.memory_bytes,
        "l2_bytes": gpu.l2_bytes,
        "processors": gpu.processors,
        "driver": _driver_version(),
        "driver_cuda": gpu.driver_cuda,
        "versions": versions_of(_PACKAGES),
    }


def _driver_version() -> str:
    """Of the kernel's module, such as 580.159; "" where the system does not say."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else ""
