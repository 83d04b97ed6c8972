"""The plain formula that every GPU kernel is compared with: unpack, then multiply, in float64."""

import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu.bitmask_layout import Bitmask
from tailcut.kernels.gpu.bitmask_pack import unpack_bitmask
from tailcut.kernels.gpu.layouts import Dense, TwoFour
from tailcut.kernels.gpu.two_four_pack import unpack_two_four


def unpack(layout: TwoFour | Bitmask | Dense) -> Tensor:
    """Any layout -> the dense matrix [out, in] it stands for."""
    if isinstance(layout, Dense):
        return layout.weight
    return unpack_bitmask(layout) if isinstance(layout, Bitmask) else unpack_two_four(layout)


def matmul(x: Tensor, layout: TwoFour | Bitmask | Dense, dtype: torch.dtype = torch.float64) -> Tensor:
    """x [..., in] times the matrix [out, in], transposed -> [..., out] in `dtype` (float64 or float32)."""
    if x.shape[-1] != layout.shape[1]:
        raise InputError(f"x has {x.shape[-1]} columns, the matrix {layout.shape[1]}")
    return x.to(dtype) @ unpack(layout).to(dtype).T
