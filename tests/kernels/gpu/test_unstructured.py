"""Unstructured matrix times a few rows of x: in Triton's interpreter here, and on the GPU where there is one."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu.bitmask_layout import GAP_BITS, Bitmask
from tailcut.kernels.gpu.bitmask_pack import TILES, pack_bitmask
from tailcut.kernels.gpu.reference import matmul, unpack
from tailcut.kernels.gpu.unstructured import bitmask_gemv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _triton() -> None:
    pytest.importorskip("triton", reason="triton comes with torch's CUDA wheels and with the dev extra on Linux")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparse(rows: int, columns: int, sparsity: float, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    drop = torch.rand(rows, columns, generator=torch.Generator().manual_seed(rows)) < sparsity
    return torch.where(drop, 0, normal(rows, columns, seed=columns)).to(dtype).to(DEVICE)


def assert_close(got: Tensor, x: Tensor, layout: Bitmask) -> None:
    """Products of x's and W's bits are exact in float32 (int8: q is exact, the scale is applied once); a float32 sum
    of n terms is off by at most n eps of the sum of magnitudes, in any order; the result is rounded once (the
    interpreter cuts float32 to bfloat16, which is off by a whole unit in the last place, not half of one)."""
    want = matmul(x, layout)
    size = x.double().abs() @ unpack(layout).double().abs().T
    terms = layout.shape[1] + 2
    unit = torch.finfo(x.dtype).eps / (1 if DEVICE == "cpu" and x.dtype == torch.bfloat16 else 2)
    bound = want.abs() * unit + terms * 2**-24 * size * 1.01 + torch.finfo(x.dtype).tiny
    assert got.dtype == x.dtype
    assert bool(((got.double() - want).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize(
    ("shape", "sparsity", "tile"),
    [((40, 160), 0.5, (8, 4)), ((37, 301), 0.8, (8, 8)), ((5, 77), 0.9, (4, 2)), ((33, 128), 0.7, (32, 4))],
)
def test_one_row(shape: tuple[int, int], sparsity: float, tile: tuple[int, int], bits: int, dtype: torch.dtype) -> None:
    layout = pack_bitmask(sparse(*shape, sparsity, dtype), bits, rows=tile[0], segments=tile[1])
    x = normal(1, shape[1], seed=1).to(dtype).to(DEVICE)
    assert_close(bitmask_gemv(x, layout), x, layout)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("gap_bits", GAP_BITS)
def test_every_width_of_gaps(gap_bits: int, bits: int) -> None:
    layout = pack_bitmask(sparse(9, 140, 0.6), bits, gap_bits=gap_bits, rows=8, segments=4)
    x = normal(1, 140).bfloat16().to(DEVICE)
    assert_close(bitmask_gemv(x, layout), x, layout)


@pytest.mark.parametrize("bits", [16, 8])
def test_slices_as_packed_by_default(bits: int) -> None:
    layout = pack_bitmask(sparse(50, 700, 0.5), bits)
    assert (layout.rows, layout.segments) == TILES[bits]
    x = normal(2, 700).bfloat16().to(DEVICE)
    assert_close(bitmask_gemv(x, layout), x, layout)


@pytest.mark.parametrize("rows", [2, 3, 8, 11])
@pytest.mark.parametrize("bits", [16, 8])
def test_several_rows(bits: int, rows: int) -> None:
    layout = pack_bitmask(sparse(19, 100, 0.7), bits, rows=16, segments=2)
    x = normal(rows, 100).bfloat16().to(DEVICE)
    assert_close(bitmask_gemv(x, layout), x, layout)


def test_empty_and_full_rows() -> None:
    weight = sparse(12, 90, 0.5)
    weight[0], weight[5] = 0, 1
    layout = pack_bitmask(weight, rows=4, segments=4)
    x = normal(1, 90).bfloat16().to(DEVICE)
    assert_close(bitmask_gemv(x, layout), x, layout)


def test_a_matrix_of_zeros_gives_zeros() -> None:
    layout = pack_bitmask(torch.zeros(9, 40, dtype=torch.bfloat16, device=DEVICE), rows=4, segments=2)
    x = normal(2, 40).bfloat16().to(DEVICE)
    assert torch.equal(bitmask_gemv(x, layout), torch.zeros(2, 9, dtype=torch.bfloat16, device=DEVICE))


def test_columns_above_65535() -> None:
    weight = torch.zeros(3, 66000, dtype=torch.bfloat16, device=DEVICE)
    weight[0, 65999], weight[2, 65536] = 2, -1
    x = normal(1, 66000).bfloat16().to(DEVICE)
    layout = pack_bitmask(weight, rows=2, segments=2)
    assert_close(bitmask_gemv(x, layout), x, layout)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("gap_bits", [3, 8])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_infinity_reaches_every_row_that_keeps_its_column(value: float, gap_bits: int, bits: int) -> None:
    """Gaps of 8 bits need no pads inside a row at this density, so rows that end and begin elsewhere stay finite."""
    weight = sparse(16, 120, 0.9)
    weight[:, [0, 119]] = 1
    weight[:, 50] = 0
    weight[3, 50], weight[8, 50] = 1.5, -2
    layout = pack_bitmask(weight, bits, gap_bits=gap_bits, rows=4, segments=1)
    x = normal(1, 120).bfloat16().to(DEVICE)
    x[0, 50] = value
    y = bitmask_gemv(x, layout)[0].float()
    assert not y[[3, 8]].isfinite().any()
    if gap_bits == 8:
        assert y.isfinite().sum() == 14


def test_a_weight_that_is_nan_or_infinite_is_multiplied() -> None:
    weight = sparse(8, 60, 0.8)
    weight[1, 7], weight[2, 7], weight[4, 7] = float("nan"), float("inf"), -0.0
    x = torch.ones(1, 60, dtype=torch.bfloat16, device=DEVICE)
    y = bitmask_gemv(x, pack_bitmask(weight, rows=4, segments=2))[0]
    assert bool(y[1].isnan())
    assert float(y[2]) == float("inf")
    assert bool(y[[0, 3, 4, 5, 6, 7]].isfinite().all())


def test_out_is_written_and_returned() -> None:
    layout = pack_bitmask(sparse(10, 64, 0.5), rows=4, segments=2)
    x = normal(2, 64).bfloat16().to(DEVICE)
    out = torch.full((2, 10), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    assert bitmask_gemv(x, layout, out) is out
    assert torch.equal(out, bitmask_gemv(x, layout))


LAYOUT = pack_bitmask(sparse(8, 64, 0.5), rows=4, segments=2)
X = torch.ones(1, 64, dtype=torch.bfloat16, device=DEVICE)


@pytest.mark.parametrize(
    ("x", "out", "says"),
    [
        (X[0], None, r"x must be \[m, 64\]"),
        (X[:0], None, "at least one row"),
        (X[:, :32], None, r"x must be \[m, 64\] .* got \[1, 32\]"),
        (X.half(), None, "x must be torch.bfloat16 like the layout, got torch.float16"),
        (X.to("meta"), None, "x is on meta"),
        (X.repeat(1, 2)[:, ::2], None, "x must be contiguous"),
        (X, X.new_empty(1, 9), r"out must be .*\[1, 8\]"),
        (X, X.new_empty(1, 16)[:, ::2], "out must be contiguous"),
    ],
)
def test_wrong_inputs_are_named(x: Tensor, out: Tensor | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        bitmask_gemv(x, LAYOUT, out)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        ("", "the bitmask kernel needs CUDA tensors, got cpu"),
        ("os.environ['TRITON_INTERPRET'] = '1'; sys.modules['triton'] = None", "the bitmask kernel needs Triton"),
    ],
)
def test_a_machine_without_gpu_or_triton_is_told(prepare: str, says: str) -> None:
    script = f"""
import os, sys
os.environ.pop("TRITON_INTERPRET", None)
{prepare}
import torch
from tailcut.errors import TailcutError
from tailcut.kernels.gpu.bitmask_pack import pack_bitmask
from tailcut.kernels.gpu.unstructured import bitmask_gemv
assert "triton" not in sys.modules or sys.modules["triton"] is None
try:
    bitmask_gemv(torch.ones(1, 8).bfloat16(), pack_bitmask(torch.ones(4, 8).bfloat16()))
except TailcutError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert says in ran.stdout
