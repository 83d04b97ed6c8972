"""The walk over a block of columns: the Triton kernel (in Triton's interpreter without a GPU) against the plain walk in float64."""

import platform
import subprocess
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tailcut.allocation import NM, Bits, Dense, Unstructured
from tailcut.bench.gpu_device import gpu_problem
from tailcut.compress.pruners import _columns, sparsegpt
from tailcut.compress.pruners._columns import Block, Grid, walk
from tailcut.compress.quantisers import gptq, joint
from tailcut.compress.statistics import Statistics

pytest.importorskip("triton", reason="Triton has no build for this platform; the kernel is not used there")

DEVICE = "cpu" if gpu_problem() else "cuda"
COLUMNS = [1, 40, 128]
BITS: tuple[Bits, ...] = (8, 3)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tailcut.compress.pruners import _columns_kernel

    monkeypatch.setattr(_columns, "_kernel", lambda device: _columns_kernel.walk)
    monkeypatch.setattr(_columns, "_ROWS", 8)  # half as many programs for the interpreter


def drawn(columns: int, rows: int, seed: int) -> tuple[Block, Tensor, Tensor]:
    """A block with dead inputs and held weights, its factor over the diagonal, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3 * columns + 5, columns, generator=generator) + torch.randn(1, columns, generator=generator)
    factor = sparsegpt.inverse_factor(inputs.T @ inputs)
    weights = torch.randn(columns, rows, generator=generator)
    dead = torch.rand(columns, 1, generator=generator) < 0.1
    held, mask = (torch.rand(columns, rows, generator=generator) < share for share in (0.05, 0.5))
    block = Block(weights, factor.diagonal()[:, None], dead, held)
    return on_device(block, DEVICE), (factor / factor.diagonal()[:, None]).to(DEVICE), (mask | held).to(DEVICE)


def on_device(block: Block, device: str) -> Block:
    return Block(*(tensor.to(device) for tensor in (block.inner, block.diagonal, block.dead, block.held)))


def in_float64(block: Block, scaled: Tensor, gone: Tensor | NM, grid: Grid | None) -> tuple[Tensor, Tensor]:
    """What the plain walk makes of the block, and what is lost."""
    exact = replace(block, inner=block.inner.double(), diagonal=block.diagonal.double())
    steps = None if grid is None else Grid(grid.steps.double(), grid.largest)
    lost = _columns._walk_plain(exact, scaled.double(), gone, steps)
    return exact.inner, lost


def require_same(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> None:
    """Zeros in the same places. A column is corrected by at most 127 others, each in float32: 128 roundings of 6e-8."""
    assert torch.equal(found[0] == 0, exact[0] == 0)
    for ours, theirs in zip(found, exact, strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("rows", [1, 13])
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.usefixtures("fused")
def test_a_mask(columns: int, rows: int) -> None:
    block, scaled, mask = drawn(columns, rows, columns + rows)
    exact = in_float64(block, scaled, mask, None)
    lost = walk(block, scaled, mask, None)
    require_same((block.inner, lost), exact)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(5, 8), NM(1, 2), NM(3, 5)], ids=str)
@pytest.mark.parametrize("columns", [40, 120])
@pytest.mark.usefixtures("fused")
def test_groups_chosen_on_the_way(columns: int, pattern: NM) -> None:
    block, scaled, _ = drawn(columns, 13, columns)
    exact = in_float64(block, scaled, pattern, None)
    lost = walk(block, scaled, pattern, None)
    require_same((block.inner, lost), exact)
    kept = (block.inner != 0).T.reshape(13, -1, pattern.block).sum(-1)
    assert int(kept.max()) <= pattern.keep


@pytest.mark.usefixtures("fused")
def test_of_equal_scores_the_earlier_goes() -> None:
    """No correction (a diagonal factor), equal weights: the first two of every four."""
    block = on_device(
        Block(torch.ones(8, 3), torch.ones(8, 1), torch.zeros(8, 1, dtype=torch.bool), torch.zeros(8, 3).bool()), DEVICE
    )
    walk(block, torch.eye(8, device=DEVICE), NM(2, 4), None)
    assert block.inner.T.tolist() == [[0.0, 0.0, 1.0, 1.0] * 2] * 3


@pytest.mark.parametrize("largest", [127, 7, 1])
@pytest.mark.parametrize("pattern", [None, NM(2, 4)], ids=str)
@pytest.mark.usefixtures("fused")
def test_rounding_to_a_grid(pattern: NM | None, largest: int) -> None:
    block, scaled, mask = drawn(120, 13, largest)
    steps = block.inner.abs().amax(0) / largest * 0.6  # some weights are cut off
    steps[3] = 0.0  # a row without a scale: everything becomes zero
    grid = Grid(steps, largest)
    exact = in_float64(block, scaled, pattern or mask, grid)
    lost = walk(block, scaled, pattern or mask, grid)
    require_same((block.inner, lost), exact)
    whole = (block.inner / torch.where(steps > 0, steps, 1.0)).round()
    assert torch.equal(block.inner, whole * steps)
    assert float(whole.abs().max()) == largest


@pytest.mark.usefixtures("fused")
def test_ties_go_to_even() -> None:
    inner = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 1e30]])
    block = Block(inner, torch.ones(1, 1), torch.zeros(1, 1).bool(), torch.zeros(1, 6).bool())
    block = on_device(block, DEVICE)
    walk(block, torch.ones(1, 1, device=DEVICE), block.held, Grid(torch.ones(6, device=DEVICE), 127))
    assert block.inner[0].tolist() == [0.0, 2.0, 2.0, 0.0, -2.0, 127.0]


@pytest.mark.usefixtures("fused")
def test_enormous_and_tiny_weights() -> None:
    block, scaled, mask = drawn(40, 8, 3)
    block.inner[::2] *= 1e30
    block.inner[1::2] *= 1e-30
    exact = in_float64(block, scaled, mask, None)
    lost = walk(block, scaled, mask, None)
    require_same((block.inner, lost), exact)


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4), NM(4, 8)], ids=str)
@pytest.mark.usefixtures("fused")
def test_whole_sweeps(pattern: Unstructured | NM, monkeypatch: pytest.MonkeyPatch) -> None:
    """More columns than a block: pruned, pruned at several sparsities, rounded, both at once; each as the plain walk has it."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 136, generator=generator).to(DEVICE)
    inputs = torch.randn(600, 136, generator=generator) + torch.randn(600, 1, generator=generator)
    hessian = (inputs.T @ inputs).to(DEVICE)
    stats = Statistics(hessian.diagonal().clone(), hessian)

    def made() -> list[Tensor]:
        pruned = sparsegpt.prune(weight, pattern, stats)
        levels = sparsegpt.prune_levels(weight, (0.3, 0.6), stats)
        rounded = [gptq.quantise(pruned, Dense(), bits, stats).dense() for bits in BITS]
        together = [joint.quantise(weight, pattern, bits, stats).dense() for bits in BITS]
        return [pruned, *levels, *rounded, *together]

    ours = made()
    monkeypatch.setattr(_columns, "_kernel", lambda device: None)
    for found, plain in zip(ours, made(), strict=True):
        assert torch.equal(found == 0, plain == 0)
        # sums in another order: 1e-5 of the largest weight; no integer flipped on these
        assert torch.allclose(found, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


def test_wide_groups_and_other_devices_take_the_plain_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _columns._kernel("cpu") is None
    monkeypatch.setattr(_columns, "_kernel", lambda device: pytest.fail("asked for a kernel that cannot do this"))
    weight = torch.randn(4, 192, generator=torch.Generator().manual_seed(2))
    stats = Statistics(torch.ones(192), torch.eye(192))
    for pattern in (NM(16, 32), NM(96, 192)):  # groups too wide to rank; a block wider than a program holds
        pruned = sparsegpt.prune(weight, pattern, stats)
        assert ((pruned != 0).reshape(4, -1, pattern.block).sum(-1) == pattern.keep).all()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton ships its assembler for x86-64")
def test_it_compiles_for_gpus_that_are_not_here(
    without_interpreter: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    """In a process without the interpreter, for sm_80 and sm_90: masks, groups, grids."""
    types = ["*fp32", "*u8", "*fp32", "*fp32", "*u8", "*fp32", "*fp32", "i32", "i32", "fp32"]
    code = f"""
import inspect
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from tailcut.compress.pruners import _columns
from tailcut.compress.pruners._columns_kernel import walk
names = list(inspect.signature(walk.fn).parameters)
kinds = dict(zip(names, {types} + ["constexpr"] * 5))
for capability, group, rounds in ((80, 0, False), (90, 8, True)):
    fixed = dict(KEEP=group // 2, GROUP=group, ROUNDS=rounds, COLUMNS=_columns._WIDEST, ROWS=_columns._ROWS)
    source = ASTSource(walk, kinds, constexprs=fixed)
    made = compile(source, target=GPUTarget("cuda", capability, 32), options=dict(num_warps=1))
    assert len(made.asm["cubin"]) > 0
    print(capability)
"""
    done = without_interpreter(code)
    assert done.stdout.split() == ["80", "90"], done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", [Unstructured(0.6), NM(2, 4)], ids=str)
def test_a_whole_matrix_on_a_gpu(pattern: Unstructured | NM, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2's down projection. Near ties may fall otherwise: float32 sums of up to 1536 corrections in another order."""
    assert _columns._kernel("cuda") is not None
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(576, 1536, generator=generator).cuda()
    inputs = torch.randn(6000, 1536, generator=generator) + torch.randn(6000, 1, generator=generator)
    hessian = (inputs.T @ inputs).cuda()
    stats = Statistics(hessian.diagonal().clone(), hessian)
    fused = sparsegpt.prune(weight, pattern, stats)
    monkeypatch.setattr(_columns, "_kernel", lambda device: None)
    plain = sparsegpt.prune(weight, pattern, stats)
    errors = [float(((cut - weight) @ hessian * (cut - weight)).sum()) for cut in (fused, plain)]
    assert float(((fused == 0) != (plain == 0)).float().mean()) < 1e-3
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
