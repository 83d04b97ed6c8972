"""The Triton kernels for several rows, in Triton's interpreter here and on the GPU where there is one."""

import pytest
import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu.reference import matmul, unpack
from tailcut.kernels.gpu.two_four_pack import pack_two_four

pytest.importorskip("triton", reason="triton comes with torch's CUDA wheels and with the dev extra on Linux")
from tailcut.kernels.gpu.batch_dot import expand, two_four_dot

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter multiplies bfloat16 wrongly in tl.dot
DTYPES = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]


def two_four(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    groups = torch.randn(rows, columns // 4, 4, generator=torch.Generator().manual_seed(rows + columns))
    keep = groups.abs().topk(2, -1).indices
    return torch.zeros_like(groups).scatter_(-1, keep, groups.gather(-1, keep)).view(rows, columns).to(dtype).to(DEVICE)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "shape"), [(2, (40, 1160)), (17, (33, 260))])
def test_dot(rows: int, shape: tuple[int, int], dtype: torch.dtype, bits: int) -> None:
    layout = pack_two_four(two_four(*shape, dtype), bits, dtype=dtype, group8=32)
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(3)).to(dtype).to(DEVICE)
    got, want = two_four_dot(x, layout).double(), matmul(x, layout)
    # a rounding of the result, one of each weight (4 bits: q * scale in x's dtype), float32 sums
    eps = torch.finfo(dtype).eps
    size = x.double().abs() @ unpack(layout).double().abs().T
    assert bool(((got - want).abs() <= want.abs() * eps / 2 + size * ((eps / 2 if bits == 4 else 0) + 1e-5)).all())


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_expand(dtype: torch.dtype, bits: int) -> None:
    layout = pack_two_four(two_four(5, 1160, dtype), bits, dtype=dtype, group8=32)
    assert torch.equal(expand(layout), unpack(layout).to(dtype))


def test_wrong_shapes_are_refused() -> None:
    layout = pack_two_four(two_four(8, 128, torch.float16), group8=32)
    with pytest.raises(InputError, match="1 to 64, 128"):
        two_four_dot(torch.zeros(65, 128, dtype=torch.float16, device=DEVICE), layout)
    with pytest.raises(InputError, match="like the matrix"):
        two_four_dot(torch.zeros(2, 128, device=DEVICE), layout)
    with pytest.raises(InputError, match="out must be contiguous"):
        expand(layout, torch.zeros(8, 64, dtype=torch.float16, device=DEVICE))
