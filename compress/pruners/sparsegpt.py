"""SparseGPT (Frantar & Alistarh 2023): remove columns left to right, let the rest of the row make up for it.

With H = 2 X X^T + damping and U upper triangular, H^-1 = U^T U, the cost of zeroing w_ij given that columns
before j are fixed is w_ij^2 / U_jj^2, and the best correction of the columns after j is -(w_ij / U_jj) U_j,: .
Unstructured masks are chosen per block of 128 columns over all rows; the counts of the blocks are differences of
floor(rows * columns so far * s), so that the whole matrix loses floor(rows * columns * s) exactly. N:M masks are
chosen per group from the weights as corrected so far.

Inputs that were never active (H_jj = 0) go first. The paper's code zeroes them all; we stop at the plan, because
an input that is silent on the calibration text may still speak elsewhere.

The same sweep serves the quantisers (gptq, joint): a `Rounder` says what a kept weight becomes.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from tailcut.allocation import NM, Dense, Pattern, Unstructured
from tailcut.compress.masks import count_removed, require_divisible
from tailcut.compress.pruners._columns import Block, Grid, walk
from tailcut.compress.pruners._given import damped, finite_weight
from tailcut.compress.statistics import Needs, Statistics, exact_float32
from tailcut.errors import InputError

NEEDS: Final[Needs] = "hessian"
BLOCK: Final = 128
DAMPING: Final = (0.01, 0.1, 1.0)  # share of the mean diagonal; the first that gives a Cholesky factor is used


class Rounder(Protocol):
    """What the weights that a sweep keeps become."""

    def begin(self, start: int, kept: Tensor) -> Grid | None:
        """The sweep arrives at column `start`: kept [columns, rows] of its block as corrected so far, removed ones zero -> the
        grid of the block; None: they stay as they are.
        """
        ...

    def end(self, start: int, finished: Tensor) -> None:
        """The block that begins at column `start` is done: finished [columns, rows]."""
        ...


def prune(weight: Tensor, pattern: Pattern, stats: Statistics) -> Tensor:
    """weight [out, in] float32 with `stats.hessian` [in, in] -> pruned and corrected weight."""
    if isinstance(pattern, Dense) or pattern.sparsity == 0.0:
        return weight
    if isinstance(pattern, NM):
        require_divisible("matrix", int(weight.shape[1]), pattern)
    return _swept(finite_weight(weight).clone(), pattern, stats)


def prune_levels(weight: Tensor, sparsities: Sequence[float], stats: Statistics) -> list[Tensor]:
    """The same for several sparsities in one sweep: weight [out, in] -> one matrix for each, as `prune` gives up to rounding.

    Columns are walked once for all. On a GPU, where that walk is launches, eight take little longer than one.
    """
    patterns = tuple(Unstructured(one) for one in sparsities)
    stacked = _swept(finite_weight(weight).repeat(len(sparsities), 1), patterns, stats)
    parts = stacked.view(len(sparsities), *weight.shape).unbind()
    return [part.clone() for part in parts]  # each may be let go by itself


def _swept(weight: Tensor, pattern: Pattern | tuple[Unstructured, ...], stats: Statistics) -> Tensor:
    """`weight` [rows, in] changed in place by a sweep with the Hessian of its inputs, and returned."""
    if stats.hessian is None:
        raise ValueError("sparsegpt needs the Hessian of its inputs (NEEDS = 'hessian')")
    with exact_float32():
        return sweep(weight, inverse_factor(stats.hessian), stats.hessian.diagonal() == 0, pattern)


def inverse_factor(hessian: Tensor) -> Tensor:
    """U [in, in] upper triangular with (H + damping)^-1 = U^T U, float32.

    With J the reversal of rows and columns, J H J = L L^T gives H = R R^T with R = J L J upper, and U = R^-1:
    one Cholesky and one triangular inverse, instead of Cholesky, inverse, Cholesky. Tried in float32, then in
    float64, before the damping is raised tenfold.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise InputError("calibration activations are not finite; the model overflows on this text")
    for damping in DAMPING:
        for dtype in (torch.float32, torch.float64):
            factor, failed = torch.linalg.cholesky_ex(damped(hessian.to(dtype), damping).flip(0, 1))
            if int(failed) == 0:
                upper = factor.flip(0, 1)
                identity = torch.eye(len(upper), dtype=dtype, device=upper.device)
                inverse: Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
                return inverse.float()
    raise InputError(
        f"the Hessian of the inputs is not positive definite even with damping {DAMPING[-1]}; "
        "use more calibration text, or the wanda pruner"
    )


def sweep(
    weight: Tensor,
    factor: Tensor,
    dead: Tensor,
    pattern: Pattern | tuple[Unstructured, ...],
    rounder: Rounder | None = None,
    frozen: Tensor | None = None,
) -> Tensor:
    """Columns left to right in blocks; `weight` [rows, columns] is changed in place and returned.

    Several patterns: the rows are that many matrices of equal size, one below the other, each with its own.

    frozen: bool [rows, columns], weights that end as zero beside those that the pattern removes.
    Inside a block the work runs on its transpose, where a column of W is contiguous: a multiple faster on a CPU.
    """
    parts = pattern if isinstance(pattern, tuple) else (pattern,)
    rows, columns = len(weight) // len(parts), weight.shape[1]
    width = BLOCK if not isinstance(pattern, NM) else max(1, BLOCK // pattern.block) * pattern.block
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        inner, local = weight[:, start:stop].T.contiguous(), factor[start:stop, start:stop]
        held = torch.zeros_like(inner, dtype=torch.bool) if frozen is None else frozen[:, start:stop].T
        block = Block(inner, local.diagonal()[:, None], dead[start:stop, None], held)
        scaled = factor[start:stop] / block.diagonal
        counts = [
            count_removed(rows * stop, part.sparsity) - count_removed(rows * start, part.sparsity) for part in parts
        ]
        gone = pattern if isinstance(pattern, NM) else block.lowest(counts)
        grid = None
        if rounder is not None:
            mask = block.groups(slice(None), gone) if isinstance(gone, NM) else gone
            grid = rounder.begin(start, inner.masked_fill(mask, 0.0))
        lost = walk(block, scaled[:, start:stop], gone, grid)
        if rounder is not None:
            rounder.end(start, inner)
        weight[:, start:stop] = inner.T
        weight[:, stop:].addmm_(lost.T, scaled[:, stop:], alpha=-1.0)
    return weight
