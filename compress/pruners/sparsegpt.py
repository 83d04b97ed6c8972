"""SparseGPT (Frantar & Alistarh 2023): remove columns left to right, let the rest of the row make up for it.

With H = 2 X X^T + damping and U upper triangular, H^-1 = U^T U, the cost of zeroing w_ij given that columns
before j are fixed is w_ij^2 / U_jj^2, and the best correction of the columns after j is -(w_ij / U_jj) U_j,: .
Unstructured masks are chosen per block of 128 columns over all rows; the counts of the blocks are differences of
floor(rows * columns so far * s), so that the whole matrix loses floor(rows * columns * s) exactly. N:M masks are
chosen per group from the weights as corrected so far.

Inputs that were never active (H_jj = 0) go first. The paper's code zeroes them all; we stop at the plan, because
an input that is silent on the calibration text may still speak elsewhere.

Not here: joint quantisation, which is the quantisers' business.
"""

from typing import Final

import torch
from torch import Tensor

from tailcut.allocation import NM, Dense, Pattern
from tailcut.compress.masks import count_removed, lowest, require_divisible
from tailcut.compress.statistics import Needs, Statistics, exact_float32
from tailcut.errors import InputError

NEEDS: Final[Needs] = "hessian"
BLOCK: Final = 128
DAMPING: Final = (0.01, 0.1, 1.0)  # share of the mean diagonal; the first that gives a Cholesky factor is used


def prune(weight: Tensor, pattern: Pattern, stats: Statistics) -> Tensor:
    """weight [out, in] float32 with `stats.hessian` [in, in] -> pruned and corrected weight."""
    if isinstance(pattern, Dense) or pattern.sparsity == 0.0:
        return weight
    if stats.hessian is None:
        raise ValueError("sparsegpt needs the Hessian of its inputs (NEEDS = 'hessian')")
    if isinstance(pattern, NM):
        require_divisible("matrix", int(weight.shape[1]), pattern)
    dead = stats.hessian.diagonal() == 0
    with exact_float32():
        return _sweep(weight.clone(), inverse_factor(stats.hessian), dead, pattern)


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
            factor, failed = torch.linalg.cholesky_ex(_damped(hessian.to(dtype), damping).flip(0, 1))
            if int(failed) == 0:
                upper = factor.flip(0, 1)
                identity = torch.eye(len(upper), dtype=dtype, device=upper.device)
                inverse: Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
                return inverse.float()
    raise InputError(
        f"the Hessian of the inputs is not positive definite even with damping {DAMPING[-1]}; "
        "use more calibration text, or the wanda pruner"
    )


def _damped(hessian: Tensor, damping: float) -> Tensor:
    """H with ones where an input is dead, plus damping * mean(diag H) on the diagonal."""
    diagonal = hessian.diagonal()
    alive = torch.where(diagonal == 0, torch.ones_like(diagonal), diagonal)
    return hessian.clone().diagonal_scatter(alive + damping * alive.mean())


def _sweep(weight: Tensor, factor: Tensor, dead: Tensor, pattern: Pattern) -> Tensor:
    """Columns left to right in blocks; `weight` [rows, columns] is changed in place and returned.

    Inside a block the work runs on its transpose, where a column of W is contiguous: a multiple faster on a CPU.
    """
    rows, columns = weight.shape
    width = BLOCK if not isinstance(pattern, NM) else max(1, BLOCK // pattern.block) * pattern.block
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        inner, local = weight[:, start:stop].T.contiguous(), factor[start:stop, start:stop]
        count = count_removed(rows * stop, pattern.sparsity) - count_removed(rows * start, pattern.sparsity)
        mask = None if isinstance(pattern, NM) else _block_mask(inner, local, dead[start:stop], count)
        errors = _block_columns(inner, local, dead[start:stop], mask, pattern)
        weight[:, start:stop] = inner.T
        weight[:, stop:].addmm_(errors.T, factor[start:stop, stop:], alpha=-1.0)
    return weight


def _saliency(inner: Tensor, diagonal: Tensor, dead: Tensor) -> Tensor:
    """w^2 / U_jj^2 of transposed weights [columns, rows]; dead inputs below everything."""
    return ((inner / diagonal[:, None]) ** 2).masked_fill(dead[:, None], -1.0)


def _block_mask(inner: Tensor, factor: Tensor, dead: Tensor, count: int) -> Tensor:
    score = _saliency(inner, factor.diagonal(), dead)
    return lowest(score.flatten(), count).view_as(score)


def _block_columns(inner: Tensor, factor: Tensor, dead: Tensor, mask: Tensor | None, pattern: Pattern) -> Tensor:
    """Zero and correct `inner` [columns, rows] in place; returns the scaled errors, same shape."""
    errors = torch.zeros_like(inner)
    chosen = torch.zeros_like(inner, dtype=torch.bool) if mask is None else mask
    for column in range(len(inner)):
        if isinstance(pattern, NM) and column % pattern.block == 0:
            group = slice(column, column + pattern.block)
            score = _saliency(inner[group], factor.diagonal()[group], dead[group])
            chosen[group] = lowest(score.T.contiguous(), pattern.block - pattern.keep).T
        error = torch.where(chosen[column], inner[column], 0.0) / factor[column, column]
        inner[column:].addcmul_(factor[column, column:, None], error, value=-1.0)
        inner[column].masked_fill_(chosen[column], 0.0)
        errors[column] = error
    return errors
