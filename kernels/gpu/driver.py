"""Load a cubin and launch it on torch's current stream, through the CUDA driver's own C interface (ctypes).

Launches are plain stream work: CUDA graphs capture them. A launch may ask for a cluster of blocks and for programmatic
dependent launch (the kernel may start while the one before it ends, and waits itself where it needs its results).
"""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from tailcut.errors import MissingEnvironmentError

_MAX_DYNAMIC_SHARED: Final = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_CLUSTER_DIMENSION: Final = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
_PROGRAMMATIC_SERIALIZATION: Final = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


Argument = ctypes.c_void_p | ctypes.c_int | ctypes.c_longlong


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: an id, padding to 8 bytes, a 64-byte union whose first words are all we set."""

    _fields_ = (("id", ctypes.c_uint), ("pad", ctypes.c_char * 4), ("value", ctypes.c_uint * 16))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


@dataclass(frozen=True, slots=True)
class Function:
    """A kernel loaded on one device; the module stays loaded as long as the process runs."""

    handle: int
    shared_bytes: int


def load(cubin: bytes, name: str, device: torch.device, shared_bytes: int) -> Function:
    """The kernel `name` of `cubin`, allowed `shared_bytes` of dynamic shared memory."""
    with torch.cuda.device(device):
        torch.cuda.current_stream()  # makes torch's context current in this thread
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(_driver().cuModuleLoadData(ctypes.byref(module), cubin), "cuModuleLoadData")
        _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode()), "cuModuleGetFunction")
        most = ctypes.c_int(shared_bytes)
        _check(_driver().cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, most), "cuFuncSetAttribute")
    return Function(function.value or 0, shared_bytes)


@dataclass(frozen=True, slots=True)
class Launch:
    """Blocks in x and y, threads a block; `cluster` blocks of y make a cluster (1: none); early: see the module."""

    grid: tuple[int, int]
    threads: int
    cluster: int
    early: bool


def launch(function: Function, how: Launch, device: torch.device, arguments: Sequence[Argument]) -> None:
    """Queue the kernel on the current stream of `device`."""
    attributes = (_Attribute * 2)()
    count = 0
    if how.cluster > 1:
        attributes[count].id = _CLUSTER_DIMENSION
        attributes[count].value[0:3] = (1, how.cluster, 1)
        count += 1
    if how.early:
        attributes[count].id = _PROGRAMMATIC_SERIALIZATION
        attributes[count].value[0] = 1
        count += 1
    config = _Config()
    config.grid[:] = (*how.grid, 1)
    config.block[:] = (how.threads, 1, 1)
    config.shared, config.attributes, config.count = function.shared_bytes, attributes, count
    config.stream = torch.cuda.current_stream(device).cuda_stream
    pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
    with torch.cuda.device(device):
        status = _driver().cuLaunchKernelEx(ctypes.byref(config), ctypes.c_void_p(function.handle), pointers, None)
    _check(status, "cuLaunchKernelEx")


def version() -> str:
    """The newest CUDA version the installed driver supports, as 13.0."""
    number = ctypes.c_int()
    _check(_driver().cuDriverGetVersion(ctypes.byref(number)), "cuDriverGetVersion")
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise MissingEnvironmentError(
            "the CUDA C++ kernels need an NVIDIA driver, and libcuda.so.1 is not there"
        ) from error


def _check(status: int, call: str) -> None:
    if status != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"{call}: {(text.value or b'unknown error').decode()} ({status})")
