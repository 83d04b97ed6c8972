"""y = W x for an unstructured W of 16 or 8 bits a value and one row of x or a few.

`bitmask_gemv` launches one Triton kernel (`unstructured_kernel.py`) over a `Bitmask`. Sums are float32 and rounded once,
at the end. Pads are multiplied like weights of 0 (not doing so took more than half as long again): infinity and NaN in x
can make NaN of any row that keeps a weight in that column, or has a pad there, or begins there; the dense product would
give NaN in every row.

It is made for one row: on an H100 a bfloat16 matrix of 4096 x 4096 with half its weights took 10.5 us where dense cuBLAS
took 16.4 us. Several rows of x are taken one by one, each with its own reading of the weights; kernels whose rows shared
one took 1.7 to 2 times as long as 2, 4 or 8 products of one row. From 2 rows on dispatch prefers dense where a dense copy
is kept: it takes 2 to 8 rows in the time of one.

On compute capability 9.0 and above the kernel asks for its first weights while the kernel before it still runs (programmatic
dependent launch), and waits for it before it reads x. Weights must not be written by that kernel.
"""

import functools
import os
from typing import Any, Final

import torch
from torch import Tensor

from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.kernels.gpu.bitmask_layout import Bitmask

_LEAST_CAPABILITY: Final = (8, 0)
_PDL_CAPABILITY: Final = (9, 0)
_KINDS: Final = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def bitmask_gemv(x: Tensor, layout: Bitmask, out: Tensor | None = None, *, pdl: bool | None = None) -> Tensor:
    """x [m, in] of the layout's dtype -> y [m, out]; reads the weights m times. `pdl` None: where it is."""
    _check(x, layout, out)
    y = x.new_empty(x.shape[0], layout.shape[0]) if out is None else out
    kernel, interpreted = _kernel(x.device)
    early = not interpreted and _has_pdl(x.device.index) and pdl is not False
    parts = (layout.values, layout.gaps, layout.starts, layout.steps, layout.order, layout.scales)
    kernel[(layout.slices * x.shape[0],)](
        x,
        *parts,
        y,
        x.shape[0],
        *layout.shape,
        ROWS=layout.rows,
        SEGMENTS=layout.segments,
        GAP_BITS=layout.gap_bits,
        GAP_WORDS=layout.group.gap_words,
        VALUE_WORDS=layout.group.value_words,
        KIND="int8" if layout.bits == 8 else _KINDS[layout.dtype],
        PDL=early,
        num_warps=max(1, layout.lanes // 32),
        **({"launch_pdl": True} if early else {}),
    )
    return y


def _check(x: Tensor, layout: Bitmask, out: Tensor | None) -> None:
    rows, columns = layout.shape
    if x.ndim != 2 or x.shape[0] < 1 or x.shape[1] != columns:
        raise InputError(f"x must be [m, {columns}] with at least one row, got {list(x.shape)}")
    if x.dtype != layout.dtype:
        raise InputError(f"x must be {layout.dtype} like the layout, got {x.dtype}")
    if x.device != layout.device:
        raise InputError(f"x is on {x.device}, the weights on {layout.device}; move one of them")
    if not x.is_contiguous():
        raise InputError(f"x must be contiguous, got strides {x.stride()}; call .contiguous() first")
    wanted = (x.shape[0], rows)
    if out is not None and (tuple(out.shape) != wanted or out.dtype != x.dtype or out.device != x.device):
        raise InputError(f"out must be {x.dtype} {list(wanted)} on {x.device}, got {out.dtype} {list(out.shape)}")
    if out is not None and not out.is_contiguous():
        raise InputError(f"out must be contiguous, got strides {out.stride()}")


def _kernel(device: torch.device) -> tuple[Any, bool]:
    """The Triton kernel, and whether Triton's interpreter runs it; one sentence where this device cannot."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        raise InputError(f"the bitmask kernel needs CUDA tensors, got {device}; move x and the layout to the GPU")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise MissingEnvironmentError(f"the bitmask kernel needs compute capability 8.0 or above, this GPU has {found}")
    try:
        from tailcut.kernels.gpu import unstructured_kernel
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "triton":
            raise
        raise MissingEnvironmentError("the bitmask kernel needs Triton; install triton, it comes with torch") from error
    return unstructured_kernel.gemv, interpreted


@functools.cache
def _has_pdl(index: int) -> bool:
    return torch.cuda.get_device_capability(index) >= _PDL_CAPABILITY
