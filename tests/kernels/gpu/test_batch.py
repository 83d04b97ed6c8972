"""The tile kernel compiled for a GPU (where a compiler is) and run on one (where one is)."""

import pytest
import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu import batch, nvrtc
from tailcut.kernels.gpu.batch import Plan, compile_plan, plan_for, plans, two_four_batch
from tailcut.kernels.gpu.tiles import tiles_from_dense, tiles_to_dense

H100 = (132, (9, 0))


def two_four(rows: int, columns: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    groups = torch.randn(rows, columns // 4, 4, generator=torch.Generator().manual_seed(rows + columns))
    keep = groups.abs().topk(2, -1).indices
    kept = torch.zeros_like(groups).scatter_(-1, keep, groups.gather(-1, keep))
    return kept.view(rows, columns).to(dtype).to(device)


@pytest.mark.parametrize("rows", [1, 8, 9, 16, 17, 33, 64])
@pytest.mark.parametrize("shape", [(4096, 4096), (11008, 4096), (4096, 11008), (64, 128), (130, 264)])
@pytest.mark.parametrize(("device", "kib"), [((132, (9, 0)), 227), ((108, (8, 0)), 163), ((84, (8, 6)), 99)])
def test_plans_fit_the_device(rows: int, shape: tuple[int, int], device: tuple[int, tuple[int, int]], kib: int) -> None:
    found = plans(rows, shape, *device)
    assert 1 <= len(found) <= 7
    assert found[0] == plan_for(rows, shape, *device)
    for plan in found:
        assert plan.x_tiles * 8 >= rows
        assert plan.threads in {128, 256}
        assert 1 <= plan.splits <= (8 if device[1] >= (9, 0) else 1)  # no clusters before
        assert plan.early == (device[1] >= (9, 0))
        assert plan.shared_bytes(16) <= kib * 1024
        assert Plan.parse(plan.name) == plan


@pytest.mark.parametrize(
    ("rows", "shape", "want"),
    [
        (8, (4096, 4096), Plan(1, 1, 8, ring=True, early=True)),
        (1, (4096, 11008), Plan(1, 1, 8, stages=4, ring=True, early=True)),
        (1, (11008, 4096), Plan(1, 1, 8, stages=2, ring=True, blocks=2, early=True)),
        (16, (11008, 4096), Plan(2, 1, 8, ring=True, early=True)),
        (32, (4096, 4096), Plan(4, 2, 4, ring=True, splits=2, early=True)),
        (32, (11008, 4096), Plan(4, 2, 4, ring=True, early=True)),
        (64, (4096, 11008), Plan(8, 2, 4, splits=2, early=True)),
        (64, (11008, 4096), Plan(8, 2, 4, early=True)),
    ],
)
def test_the_rule_takes_the_plans_that_were_fastest_on_an_h100(rows: int, shape: tuple[int, int], want: Plan) -> None:
    assert plan_for(rows, shape, *H100) == want


def test_a_name_that_is_no_plan_is_refused() -> None:
    with pytest.raises(InputError, match="nine numbers"):
        Plan.parse("1,2")


def test_wrong_inputs_are_refused() -> None:
    tiles = tiles_from_dense(two_four(32, 128, torch.float16))
    with pytest.raises(InputError, match="1 to 64, 128"):
        two_four_batch(torch.zeros(65, 128).half(), tiles)
    with pytest.raises(InputError, match=r"like the matrix, got torch\.float32"):
        two_four_batch(torch.zeros(2, 128), tiles)
    with pytest.raises(InputError, match="one CUDA device, got cpu"):
        two_four_batch(torch.zeros(2, 128).half(), tiles)
    narrow = tiles_from_dense(two_four(32, 4, torch.float16))
    with pytest.raises(InputError, match="multiple of 8 columns"):
        two_four_batch(torch.zeros(2, 4).half(), narrow)


@pytest.mark.skipif(not nvrtc.available(), reason="needs NVRTC or nvcc")
@pytest.mark.parametrize(("plan", "bits"), [(Plan(1, 1, 8), 16), (Plan(2, 1, 8, ring=True, splits=2), 4)])
def test_the_kernel_compiles(plan: Plan, bits: int, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cubin = compile_plan(plan, bits, torch.bfloat16, (9, 0))
    assert cubin[:4] == b"\x7fELF"
    monkeypatch.setattr(nvrtc, "_with_nvcc", None)  # the second time it comes from the cache
    monkeypatch.setattr(nvrtc, "_with_nvrtc", None)
    assert compile_plan(plan, bits, torch.bfloat16, (9, 0)) == cubin


def on_gpu(rows: int, shape: tuple[int, int], bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and the float64 product."""
    tiles = tiles_from_dense(two_four(*shape, dtype, "cuda"), bits)
    x = torch.randn(rows, shape[1], device="cuda").to(dtype)
    return x, two_four_batch(x, tiles), x.double() @ tiles_to_dense(tiles).double().T


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("rows", [1, 7, 16, 33, 64])
@pytest.mark.parametrize("shape", [(4096, 4096), (1000, 1032), (2048, 5504)])
def test_the_product_on_a_gpu(rows: int, shape: tuple[int, int], bits: int, dtype: torch.dtype) -> None:
    _, y, want = on_gpu(rows, shape, bits, dtype)
    # one rounding of the result (half a unit in the last place at most), float32 sums in a tenth of that
    assert float((y.double() - want).norm() / want.norm()) < torch.finfo(dtype).eps / 2


@pytest.mark.gpu
def test_every_plan_gives_the_product_and_the_same_one_twice() -> None:
    tiles = tiles_from_dense(two_four(1024, 2048, torch.bfloat16, "cuda"))
    for rows in (3, 12, 30, 60):
        x = torch.randn(rows, 2048, device="cuda", dtype=torch.bfloat16)
        want = x.double() @ tiles_to_dense(tiles).double().T
        capability = torch.cuda.get_device_capability()
        for plan in plans(rows, tiles.shape, batch.processors(0), capability):
            y = two_four_batch(x, tiles, plan=plan)
            assert float((y.double() - want).norm() / want.norm()) < 2**-8, plan
            assert torch.equal(y, two_four_batch(x, tiles, plan=plan)), plan


@pytest.mark.gpu
def test_a_cuda_graph_replays_it() -> None:
    tiles = tiles_from_dense(two_four(512, 1024, torch.bfloat16, "cuda"))
    x = torch.zeros(4, 1024, device="cuda", dtype=torch.bfloat16)
    y = two_four_batch(x, tiles)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        two_four_batch(x, tiles, out=y)
    x.normal_()
    graph.replay()
    assert torch.equal(y, two_four_batch(x, tiles))
    assert float(y.abs().sum()) > 0
