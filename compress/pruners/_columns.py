"""One block of columns of a sweep: zero, round, and make up for it in the columns after, left to right.

The plain walk runs anywhere; on a GPU its time is that of launching five kernels a column, so there one Triton kernel walks
the whole block (`_columns_kernel`). The two give the same up to the rounding of sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from tailcut.allocation import NM
from tailcut.compress import fused
from tailcut.compress.masks import lowest

_WIDEST: Final = 128  # columns that a program holds
_GROUP: Final = 16  # largest group that it ranks: all pairs are compared, unrolled
_ROWS: Final = 4  # rows that a program, one warp, holds: with 8 the walk with groups no longer fits the registers


@dataclass(frozen=True, slots=True)
class Grid:
    """What weights are rounded to: integers of at most `largest`, times steps >= 0 [rows], or of any shape that divides them."""

    steps: Tensor
    largest: int

    def integers(self, weights: Tensor) -> Tensor:
        """Weights [..., rows] over the steps, rounded (ties to even) and cut off; float."""
        divisor = torch.where(self.steps > 0, self.steps, 1.0)
        return (weights / divisor).round_().clamp_(-self.largest, self.largest)

    def nearest(self, weights: Tensor) -> Tensor:
        """Weights [..., rows] on the grid."""
        return self.integers(weights).mul_(self.steps)


@dataclass(frozen=True, slots=True)
class Block:
    """Some columns: their transposed weights [columns, rows], changed in place, the factor's diagonal and dead inputs
    [columns, 1], and weights that end as zero [columns, rows].

    Transposed, a column of W is contiguous: a multiple faster on a CPU.
    """

    inner: Tensor
    diagonal: Tensor
    dead: Tensor
    held: Tensor

    def saliency(self, part: slice) -> Tensor:
        """w^2 / U_jj^2; held weights and dead inputs below everything."""
        score = (self.inner[part] / self.diagonal[part]).square_()
        return score.masked_fill_(self.dead[part], -1.0).masked_fill_(self.held[part], -2.0)

    def lowest(self, counts: Sequence[int]) -> Tensor:
        """True at the lowest `counts` of each of as many equal parts of the rows, and where a weight is held."""
        scores = self.saliency(slice(None)).chunk(len(counts), dim=1)
        masks = [lowest(score.flatten(), count).view_as(score) for score, count in zip(scores, counts, strict=True)]
        return torch.cat(masks, dim=1) | self.held

    def groups(self, part: slice, pattern: NM) -> Tensor:
        """True at what N:M removes of every group of some columns, by the weights as they are now."""
        score = self.saliency(part).T.reshape(self.inner.shape[1], -1, pattern.block)
        return lowest(score, pattern.block - pattern.keep).flatten(-2).T | self.held[part]


def walk(block: Block, scaled: Tensor, gone: Tensor | NM, grid: Grid | None) -> Tensor:
    """Zero, round and correct the block in place; returns what each weight lost when its turn came [columns, rows].

    `scaled` [columns, columns]: the block's factor with every row divided by its diagonal. `gone`: bool [columns, rows], or a
    pattern whose groups are chosen from the weights as corrected when the walk arrives at them.
    """
    fits = len(block.inner) <= _WIDEST and (not isinstance(gone, NM) or gone.block <= _GROUP)
    kernel = _kernel(block.inner.device.type) if fits else None
    if kernel is None:
        return _walk_plain(block, scaled, gone, grid)
    return _walk_fused(kernel, block, scaled, gone, grid)


def _walk_plain(block: Block, scaled: Tensor, gone: Tensor | NM, grid: Grid | None) -> Tensor:
    inner, lost = block.inner, torch.empty_like(block.inner)
    mask = torch.empty_like(block.held) if isinstance(gone, NM) else gone
    for column in range(len(inner)):
        if isinstance(gone, NM) and column % gone.block == 0:
            group = slice(column, column + gone.block)
            mask[group] = block.groups(group, gone)
        now = inner[column]
        kept = now.masked_fill(mask[column], 0.0)
        kept = kept if grid is None else grid.nearest(kept)
        torch.sub(now, kept, out=lost[column])
        now.copy_(kept)
        inner[column + 1 :].addcmul_(scaled[column, column + 1 :, None], lost[column], value=-1.0)
    return lost


def _walk_fused(
    kernel: Any,  # noqa: ANN401  (Triton's kernels have no type)
    block: Block,
    scaled: Tensor,
    gone: Tensor | NM,
    grid: Grid | None,
) -> Tensor:
    inner, lost = block.inner, torch.empty_like(block.inner)
    columns, rows = inner.shape
    first, keep, group = (block.held, gone.keep, gone.block) if isinstance(gone, NM) else (gone, 0, 0)
    mask, dead = (flags.contiguous().view(torch.uint8) for flags in (first, block.dead))
    diagonal, factor = block.diagonal.contiguous(), scaled.contiguous()
    steps, largest = (inner, 0.0) if grid is None else (grid.steps.contiguous(), float(grid.largest))
    kernel[(-(-rows // _ROWS),)](
        inner, mask, factor, diagonal, dead, steps, lost, rows, columns, largest,
        KEEP=keep, GROUP=group, ROUNDS=grid is not None, COLUMNS=_WIDEST, ROWS=_ROWS, num_warps=1,
    )  # fmt: skip
    return lost


def _kernel(device: str) -> Any:  # noqa: ANN401
    """The fused walk, or None where it cannot run."""
    found = fused.kernels(_load, device)
    return None if found is None else found.walk


def _load() -> Any:  # noqa: ANN401
    from tailcut.compress.pruners import _columns_kernel

    return _columns_kernel
