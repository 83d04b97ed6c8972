"""The weight that a product uses while its matrix is learnt: zero outside the mask, on its grid where it has one.

Each matrix is a parametrisation (torch.nn.utils.parametrize) of the learnt float32 weight, so the model's own modules and
forward stay as they are. As the masked weight is a function of the learnt one, gradients and the optimiser's moments are
zero where the mask is, and what is measured while learning is what will be stored.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tailcut.compress.discovery import Linear
from tailcut.compress.quantisers._grid import Quantised, spread, to_integers
from tailcut.compress.recovery._store import Recovered, float32_of
from tailcut.compress.recovery._student import Grid, Student
from tailcut.errors import InputError
from tailcut.quantised import LARGEST


class _OnGrid(torch.autograd.Function):
    """Nearest grid points; the gradient goes straight through inside the grid's range (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, steps: Tensor, bits: Any) -> Tensor:  # noqa: ANN401  (autograd's own)
        ctx.save_for_backward(weight.abs() <= steps * (LARGEST[bits] + 0.5))
        return to_integers(weight, steps, bits).float() * steps

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401
        (inside,) = ctx.saved_tensors
        return torch.where(inside, grads[0], 0.0), None, None


class Support(nn.Module):
    """Learnt weight in the stored layout -> the weight that is used. `keep` [out, in] bool, True where weights live."""

    keep: Tensor
    scales: Tensor | None

    def __init__(self, keep: Tensor, grid: Grid | None, transposed: bool) -> None:
        super().__init__()
        self.transposed, self.bits = transposed, None if grid is None else grid.bits
        self.register_buffer("keep", (keep.T if transposed else keep).contiguous())
        self.register_buffer("scales", None if grid is None else grid.scales)

    def learnt(self, weight: Tensor) -> Tensor:
        """The float weight before rounding, zero outside the mask."""
        return torch.where(self.keep, weight, 0.0)

    def forward(self, weight: Tensor) -> Tensor:
        masked = self.learnt(weight)
        if self.scales is None:
            return masked
        steps = spread(self.scales, int(masked.shape[0 if self.transposed else 1]))
        used: Tensor = _OnGrid.apply(masked, steps.T if self.transposed else steps, self.bits)  # type: ignore[no-untyped-call]
        return used

    def integers(self, weight: Tensor) -> Quantised | None:
        """What the grid makes of the learnt weight, [out, in]; None without a grid."""
        if self.scales is None or self.bits is None:
            return None
        flat = self.learnt(weight)
        flat = (flat.T if self.transposed else flat).contiguous()
        return Quantised(to_integers(flat, spread(self.scales, int(flat.shape[1])), self.bits), self.scales)


class LowRank(Support):
    """LoRA (Hu et al. 2022) whose merge keeps zeros: mask * (W0 + (2 / sqrt(rank)) * B A), learning A and B only.

    The mask is applied to the merged matrix while learning and in the result, so nothing is left to be merged or adapted.
    The factor follows rank-stabilised LoRA (Kalajdzievski 2023): alpha / sqrt(rank).
    """

    def __init__(
        self, keep: Tensor, grid: Grid | None, transposed: bool, rank: int, generator: torch.Generator
    ) -> None:
        super().__init__(keep, grid, transposed)
        rows, columns = self.keep.shape
        rank = min(rank, int(rows), int(columns))
        self.factor = 2.0 / math.sqrt(rank)
        self.down = nn.Parameter(torch.randn(rank, columns, generator=generator) / math.sqrt(columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def learnt(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # as it will be stored: in float32
            return torch.where(self.keep, torch.addmm(weight, self.up, self.down, alpha=self.factor), 0.0)


Make = Callable[[Linear, Tensor, Grid | None], Support]


def plain_support(linear: Linear, keep: Tensor, grid: Grid | None) -> Support:
    """All kept weights of a matrix learn."""
    return Support(keep, grid, linear.transposed)


def attach(student: Student, block: nn.Module, index: int, make: Make = plain_support) -> dict[str, Support]:
    """Put a support on every matrix of a block that holds the student's exact weights; by module name."""
    prefix, found = student.weights.skeleton.block_prefix(index), {}
    for linear in student.of(index):
        support = make(linear, student.keep(linear), student.grid(linear)).to(student.weights.device)
        module = block.get_submodule(linear.name.removeprefix(prefix))
        parametrize.register_parametrization(module, "weight", support, unsafe=True)
        found[linear.name] = support
    return found


def detach(student: Student, block: nn.Module, index: int) -> None:
    """Take the supports off again; each matrix becomes the weight that was used."""
    prefix = student.weights.skeleton.block_prefix(index)
    for linear in student.of(index):
        module = block.get_submodule(linear.name.removeprefix(prefix))
        parametrize.remove_parametrizations(module, "weight")


def original(module: nn.Module) -> nn.Parameter:
    """The learnt weight of a module with a support."""
    held: Any = module
    weight: nn.Parameter = held.parametrizations.weight.original
    return weight


def recovered(module: nn.Module, support: Support, transposed: bool) -> Recovered:
    """The matrix as it is now, on the CPU."""
    with torch.no_grad():
        learnt, integers = support.learnt(original(module)), support.integers(original(module))
    return Recovered(float32_of(learnt.T if transposed else learnt), integers)


def remask(module: nn.Module, support: Support) -> None:
    """Zero the learnt weight where the mask is: nothing an optimiser does can move it."""
    with torch.no_grad():
        original(module).masked_fill_(~support.keep, 0.0)


def require_mask(name: str, module: nn.Module, support: Support) -> None:
    """InputError if the learnt weight, or the one that is used, is not zero outside the mask."""
    with torch.no_grad():
        learnt = original(module)
        filled = [bool(weight.masked_fill(support.keep, 0.0).any()) for weight in (learnt, support(learnt))]
    if any(filled):
        raise InputError(f"{name}: a pruned weight is no longer zero; please report this")
