"""cuda/two_four_tiles.cu run on the CPU: the same source, its instructions replaced by emulate_cuda.h."""

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tailcut.kernels.gpu.batch import SOURCE, Plan, plan_settings
from tailcut.kernels.gpu.tiles import TILE_ROWS, TwoFourTiles, tiles_from_dense, tiles_to_dense

HERE = Path(__file__).resolve().parent
GXX = shutil.which("g++")


@dataclass(frozen=True)
class Case:
    """x [rows, columns] times W [out, columns]."""

    rows: int
    out: int
    columns: int
    plan: Plan
    dtype: torch.dtype = torch.bfloat16
    bits: int = 16


CASES = {
    "registers": Case(5, 40, 392, Plan(1, 1, 2)),
    "two tiles ahead, float16": Case(16, 64, 1160, Plan(2, 1, 2, stages=2, depth=2), torch.float16),
    "ring": Case(9, 33, 520, Plan(2, 1, 2, ring=True)),
    "ring of two": Case(8, 40, 1160, Plan(1, 1, 2, stages=2, ring=True, blocks=2)),
    "ring longer than a block's columns": Case(3, 33, 648, Plan(1, 1, 4, stages=4, ring=True, splits=2)),
    "ring, rows across warps": Case(30, 70, 904, Plan(4, 2, 2, ring=True, splits=2)),
    "rows across warps, columns across blocks": Case(33, 96, 904, Plan(8, 2, 1, stages=4, splits=2)),
    "8 bits": Case(7, 40, 392, Plan(1, 1, 2), bits=8),
    "8 bits, ring, blocks, float16": Case(9, 40, 648, Plan(2, 1, 2, ring=True, splits=2), torch.float16, bits=8),
    "4 bits": Case(12, 70, 392, Plan(2, 1, 2, stages=2), bits=4),
    "4 bits, ring, float16": Case(5, 40, 520, Plan(1, 1, 2, ring=True), torch.float16, bits=4),
}


def two_four(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    groups = torch.randn(rows, columns // 4, 4, generator=torch.Generator().manual_seed(rows + columns))
    keep = groups.abs().topk(2, -1).indices
    return torch.zeros_like(groups).scatter_(-1, keep, groups.gather(-1, keep)).view(rows, columns).to(dtype)


def emulated(case: Case, x: Tensor, tiles: TwoFourTiles, eager: bool, folder: Path) -> Tensor:
    """float32 [splits, rows, out] of the partial sums, or [rows, out] in x's dtype."""
    library = folder / "kernel.so"
    if not library.is_file():
        settings = [
            f"-D{name}={value}" for name, value in plan_settings(case.plan, case.bits, case.dtype, (8, 0)).items()
        ]
        flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-w", "-DTAILCUT_EMULATE", "-DORDERED=1"]
        shim = ["-include", str(HERE / "emulate_cuda.h"), "-x", "c++", str(SOURCE)]
        subprocess.run([str(GXX), *flags, *settings, *shim, "-o", str(library)], check=True, timeout=120)
    splits = case.plan.splits
    y = torch.full((case.rows, case.out), float("nan"), dtype=case.dtype)
    partial = torch.full((splits, case.rows, case.out), float("nan"))
    pointer = ctypes.c_void_p
    ctypes.CDLL(str(library)).run(
        *(-(-case.out // (TILE_ROWS * case.plan.down)), splits, case.plan.threads, int(eager)),
        *(pointer(tiles.data.data_ptr()), pointer(x.data_ptr()), pointer(y.data_ptr()), pointer(partial.data_ptr())),
        pointer(tiles.scales.data_ptr() if tiles.scales is not None else 0),
        *(case.rows, case.out, case.columns, tiles.data.shape[1], ctypes.c_longlong(x.stride(0) * 2)),
    )
    return y if splits == 1 else partial.sum(0).to(case.dtype)


@pytest.mark.skipif(GXX is None, reason="needs g++")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_kernel_multiplies(case: Case, tmp_path: Path) -> None:
    assert case.plan.shared_bytes(case.bits) <= 227 * 1024
    tiles = tiles_from_dense(two_four(case.out, case.columns, case.dtype), case.bits)
    weight = tiles_to_dense(tiles)
    x = torch.randn(case.rows, case.columns, generator=torch.Generator().manual_seed(7)).to(case.dtype)
    want = x.double() @ weight.double().T
    # one rounding of the result, and float32 sums whose error is far below it
    bound = want.abs() * torch.finfo(case.dtype).eps / 2 + 1e-5 * (x.double().abs() @ weight.double().abs().T)
    results = [emulated(case, x, tiles, eager, tmp_path) for eager in (False, True)]
    assert bool(((results[0].double() - want).abs() <= bound).all())
    assert torch.equal(results[0], results[1])
