"""TwoFour of any bits with several rows of x, in Triton: dense on the fly (`two_four_dot`) or in memory (`expand`).

`two_four_dot` expands in registers and uses dense tensor cores: right everywhere, but bound by the expansion (an H100
needs as long as cuBLAS on the dense matrix at 16 rows and 1.7 times as long at 64), so it is for machines without
NVRTC, for rows that are no multiple of 8 and for 8 and 4 bits. `expand` writes the dense matrix for one cuBLAS call.
"""

from typing import Final

import torch
from torch import Tensor

from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.kernels.gpu.layouts import TwoFour

DOT_ROWS: Final = 64
_SMALLEST_DOT: Final = 16  # tl.dot's least side


def two_four_dot(x: Tensor, layout: TwoFour) -> Tensor:
    """x [m, in], m = 1 … 64, in the layout's dtype -> [m, out]; float32 sums."""
    out, columns = layout.shape
    if x.ndim != 2 or x.shape[1] != columns or not 1 <= len(x) <= DOT_ROWS:
        raise InputError(f"x must be [1 to {DOT_ROWS}, {columns}], got {list(x.shape)}")
    if x.dtype != layout.dtype:
        raise InputError(f"x must be {layout.dtype} like the matrix, got {x.dtype}")
    kernels = _kernels(x, layout)
    x = x if x.stride(1) == 1 else x.contiguous()
    y = torch.empty(len(x), out, dtype=x.dtype, device=x.device)
    block = max(_SMALLEST_DOT, 1 << (len(x) - 1).bit_length())
    rows = 32 if out < 132 * 64 else 64  # at least one block an SM of an H100
    scales, stride = _scales(layout)
    kernels.dot_kernel[(-(-out // rows),)](
        *(x, layout.values, layout.meta, scales, y, len(x), out, columns // 4, x.stride(0), stride),
        BITS=layout.bits, G8=layout.group8, CHUNKS=layout.chunks, BN=rows, BM=block,
    )  # fmt: skip
    return y


def expand(layout: TwoFour, out: Tensor | None = None) -> Tensor:
    """The dense matrix [out, in] in the layout's dtype, written by one kernel on its device."""
    kernels = _kernels(layout.values, layout)
    shape = layout.shape
    dense = torch.empty(shape, dtype=layout.dtype, device=layout.device) if out is None else out
    if dense.shape != shape or dense.dtype != layout.dtype or not dense.is_contiguous():
        raise InputError(f"out must be contiguous {layout.dtype} {list(shape)}, got {dense.dtype} {list(dense.shape)}")
    scales, stride = _scales(layout)
    kernels.expand_kernel[(shape[0], layout.chunks)](
        *(layout.values, layout.meta, scales, dense, shape[1] // 4, stride),
        BITS=layout.bits, G8=layout.group8, CHUNKS=layout.chunks, num_warps=1,
    )  # fmt: skip
    return dense


def _scales(layout: TwoFour) -> tuple[Tensor, int]:
    """The scales, or any tensor where there are none, and the elements from row to row."""
    if layout.scales is None:
        return layout.meta, 0
    return layout.scales, int(layout.scales.stride(0))


def _kernels(x: Tensor, layout: TwoFour):  # type: ignore[no-untyped-def]  # noqa: ANN202 a module, loaded late
    if x.device != layout.device:
        raise InputError(f"x and the matrix must be on one device, got {x.device} and {layout.device}")
    try:
        import triton
    except ImportError as error:
        raise MissingEnvironmentError("this kernel needs triton, which comes with torch's CUDA wheels") from error
    if x.device.type != "cuda" and not getattr(triton.knobs.runtime, "interpret", False):
        raise InputError(f"the GPU kernels need tensors on a CUDA device, got {x.device}")
    from tailcut.kernels.gpu import batch_kernel

    return batch_kernel
