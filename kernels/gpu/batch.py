"""A few rows of x times a 2:4 matrix on sparse tensor cores: y [m, out] = x [m, in] W^T, m = 1 … 64.

The kernel is cuda/two_four_tiles.cu (what it does is said there); here are its settings, its compilation at first use
and its launch. `plan_for` is a rule that needs no tuning; `dispatch.py` times other plans too.
"""

import ctypes
import functools
from dataclasses import astuple, dataclass, replace
from typing import Final

import torch
from torch import Tensor

from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.kernels.gpu import driver, nvrtc
from tailcut.kernels.gpu.tiles import TILE_COLUMNS, TILE_ROWS, TILE_WORDS, TwoFourTiles

MOST_ROWS: Final = 64
SOURCE: Final = nvrtc.SOURCES / "two_four_tiles.cu"
_ENTRY: Final = "two_four_tiles"
_SHARED_KIB: Final = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}  # a block's most; others 99
_MOST_CLUSTER: Final = 8  # the largest cluster every device with clusters takes


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings of one launch.

    x_tiles: 8 rows of x each; down x across warps a block share the rows and the columns of W; stages: buffers of x
    (and of W with `ring`); depth: tiles a warp loads ahead into registers; blocks an SM should hold;
    splits: blocks that divide the columns; early: programmatic dependent launch (sm_90).
    """

    x_tiles: int
    down: int
    across: int
    stages: int = 3
    depth: int = 1
    ring: bool = False
    blocks: int = 1
    splits: int = 1
    early: bool = False

    @property
    def name(self) -> str:
        """The settings in order, as numbers: what `parse` reads."""
        return ",".join(str(int(value)) for value in astuple(self))

    @staticmethod
    def parse(name: str) -> "Plan":
        """InputError unless `name` is a plan's name."""
        try:
            x_tiles, down, across, stages, depth, ring, blocks, splits, early = (int(part) for part in name.split(","))
        except ValueError as error:
            raise InputError(f"a plan is nine numbers with commas between, got {name!r}") from error
        return Plan(x_tiles, down, across, stages, depth, bool(ring), blocks, splits, bool(early))

    @property
    def threads(self) -> int:
        return self.down * self.across * 32

    def shared_bytes(self, bits: int) -> int:
        """Dynamic shared memory: the stages, later the sums of all warps."""
        rows = self.x_tiles * 8
        tiles = self.down * self.across * TILE_WORDS[bits] * 4 if self.ring else 0
        stages = self.stages * (rows * self.across * TILE_COLUMNS * 2 + tiles)
        return max(stages, self.across * self.down * TILE_ROWS * (rows + 1) * 4)


# By tiles of x: the fastest of about 80 plans on an H100 (W 4096 x 4096, 11008 x 4096, 4096 x 11008, bfloat16), the
# best of 4096 x 4096 first; the last of each fits every device.
_GOOD: Final = {
    1: (
        Plan(1, 1, 8, stages=3, ring=True),
        Plan(1, 1, 8, stages=4, ring=True),
        Plan(1, 1, 8, stages=2, ring=True, blocks=2),
        Plan(1, 1, 4, stages=4, ring=True),
        Plan(1, 1, 4, stages=3, ring=True),
    ),
    2: (Plan(2, 1, 8, ring=True), Plan(2, 1, 4, stages=4, ring=True), Plan(2, 1, 4, ring=True), Plan(2, 1, 8)),
    4: (Plan(4, 2, 4, ring=True), Plan(4, 1, 8, depth=2), Plan(4, 1, 8), Plan(4, 2, 4)),
    8: (Plan(8, 2, 4), Plan(8, 2, 4, depth=2), Plan(8, 4, 2)),
}


@functools.cache
def plan_for(rows: int, shape: tuple[int, int], processors: int, capability: tuple[int, int]) -> Plan:
    """A plan for x [rows, in] and W `shape` on a GPU with so many SMs, by rules that the H100's times suggest."""
    good = _fitting(rows, shape, processors, capability)
    if -(-shape[0] // TILE_ROWS) > 2 * processors:
        wanted = [plan for plan in good if plan.blocks == 2]  # many rows of W: blocks that overlap
    else:
        wanted = [plan for plan in good if plan.stages == 4 and shape[1] > 4 * TILE_COLUMNS * plan.across]
    return next((plan for plan in wanted if plan.across == good[0].across), good[0])


def plans(rows: int, shape: tuple[int, int], processors: int, capability: tuple[int, int]) -> list[Plan]:
    """Plans worth timing (at most 7), the rule's first."""
    first = plan_for(rows, shape, processors, capability)
    steps = -(-shape[1] // (TILE_COLUMNS * first.across))
    most = min(_MOST_CLUSTER, steps) if capability >= (9, 0) else 1
    splits = [replace(first, splits=n) for n in (first.splits // 2, first.splits * 2) if 1 <= n <= most]
    return list(dict.fromkeys([first, *_fitting(rows, shape, processors, capability), *splits]))


def _fitting(rows: int, shape: tuple[int, int], processors: int, capability: tuple[int, int]) -> list[Plan]:
    """The good plans that the device has shared memory for, with splits for about one block an SM."""
    x_tiles = next(n for n in _GOOD if n * 8 >= rows)
    shared = (_SHARED_KIB.get(capability, 99) + 1) * 1024  # of an SM: each block takes 1 KiB more than it asks for
    good = [plan for plan in _GOOD[x_tiles] if (plan.shared_bytes(16) + 1024) * plan.blocks <= shared]
    early = capability >= (9, 0)
    return [replace(plan, splits=_splits(plan, shape, processors, capability), early=early) for plan in good]


def _splits(plan: Plan, shape: tuple[int, int], processors: int, capability: tuple[int, int]) -> int:
    blocks = -(-shape[0] // (TILE_ROWS * plan.down))
    steps = -(-shape[1] // (TILE_COLUMNS * plan.across))
    most = min(_MOST_CLUSTER if capability >= (9, 0) else 1, steps)
    return next((n for n in (1, 2, 4, 8) if n <= most and blocks * n >= 0.9 * processors), max(1, most))


def two_four_batch(x: Tensor, tiles: TwoFourTiles, out: Tensor | None = None, plan: Plan | None = None) -> Tensor:
    """x [m, in] in the tiles' dtype, m = 1 … 64 -> y [m, out]; float32 sums in a fixed order, rounded once."""
    _check(x, tiles, out)
    capability = torch.cuda.get_device_capability(x.device)
    if capability < (8, 0):
        raise MissingEnvironmentError(
            f"sparse tensor cores need compute capability 8.0, {torch.cuda.get_device_name(x.device)} has "
            f"{capability[0]}.{capability[1]}"
        )
    if plan is None:
        plan = plan_for(len(x), tiles.shape, processors(x.device.index), capability)
    if plan.x_tiles * 8 < len(x):
        raise InputError(f"the plan is for up to {plan.x_tiles * 8} rows of x, got {len(x)}")
    if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
        x = x.clone(memory_format=torch.contiguous_format)
    y = torch.empty(len(x), tiles.shape[0], dtype=x.dtype, device=x.device) if out is None else out
    partial = None
    if plan.splits > 1 and capability < (9, 0):
        partial = torch.empty(plan.splits, *y.shape, dtype=torch.float32, device=x.device)
    _launch(x, tiles, y, partial, plan)
    return y if partial is None else y.copy_(partial.sum(0))


def compile_plan(plan: Plan, bits: int, dtype: torch.dtype, capability: tuple[int, int]) -> bytes:
    """The cubin of a plan; needs a compiler, not a GPU."""
    return nvrtc.cubin(SOURCE, plan_settings(plan, bits, dtype, capability), capability)


def plan_settings(plan: Plan, bits: int, dtype: torch.dtype, capability: tuple[int, int]) -> dict[str, int]:
    """The source's macros; the number of splits is no macro, only whether there is more than one."""
    cluster = int(plan.splits > 1 and capability >= (9, 0))
    return {
        "BITS": bits,
        "NT": plan.x_tiles,
        "WR": plan.down,
        "WK": plan.across,
        "STAGES": plan.stages,
        "DEPTH": plan.depth,
        "RING": int(plan.ring),
        "BLOCKS": plan.blocks,
        "HALF": int(dtype == torch.float16),
        "CLUSTER": cluster,
        "PARTIAL": int(plan.splits > 1 and not cluster),
    }


def _check(x: Tensor, tiles: TwoFourTiles, out: Tensor | None) -> None:
    rows, columns = tiles.shape
    if x.ndim != 2 or x.shape[1] != columns or not 1 <= len(x) <= MOST_ROWS:
        raise InputError(f"x must be [1 to {MOST_ROWS}, {columns}], got {list(x.shape)}")
    if x.dtype != tiles.dtype:
        raise InputError(f"x must be {tiles.dtype} like the matrix, got {x.dtype}")
    if columns % 8:
        raise InputError(f"the tensor-core kernel needs a multiple of 8 columns, the matrix has {columns}")
    if x.device.type != "cuda" or tiles.device != x.device:
        raise InputError(f"x and the matrix must be on one CUDA device, got {x.device} and {tiles.device}")
    if out is not None and (out.shape != (len(x), rows) or out.dtype != x.dtype or not out.is_contiguous()):
        raise InputError(f"out must be contiguous {x.dtype} [{len(x)}, {rows}], got {out.dtype} {list(out.shape)}")


@functools.cache
def processors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _function(plan: Plan, bits: int, dtype: torch.dtype, device: int) -> driver.Function:
    cubin = compile_plan(plan, bits, dtype, torch.cuda.get_device_capability(device))
    return driver.load(cubin, _ENTRY, torch.device("cuda", device), plan.shared_bytes(bits))


def _launch(x: Tensor, tiles: TwoFourTiles, y: Tensor, partial: Tensor | None, plan: Plan) -> None:
    out, columns = tiles.shape
    function = _function(plan, tiles.bits, x.dtype, x.device.index)
    grid = (-(-out // (TILE_ROWS * plan.down)), plan.splits)
    how = driver.Launch(grid, plan.threads, plan.splits if partial is None else 1, plan.early)
    arguments = (
        ctypes.c_void_p(tiles.data.data_ptr()),
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_void_p(y.data_ptr()),
        ctypes.c_void_p(0 if partial is None else partial.data_ptr()),
        ctypes.c_void_p(0 if tiles.scales is None else tiles.scales.data_ptr()),
        ctypes.c_int(len(x)),
        ctypes.c_int(out),
        ctypes.c_int(columns),
        ctypes.c_int(tiles.data.shape[1]),
        ctypes.c_longlong(x.stride(0) * x.element_size()),
    )
    driver.launch(function, how, x.device, arguments)
