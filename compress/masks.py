"""Which weights go: the one place where top-k, per-row and N:M selection is written.

Counts are exact. A threshold (`score <= value`) would also remove everything that ties with it, and ties are
common: 4-bit weights that were dequantised have 16 levels per group. Of equal scores the earliest goes first, so
that a mask depends on nothing but its input. Groups of N:M run along the input dimension, the columns of
W [out, in], and N is what is kept.
"""

import torch
from torch import Tensor

from tailcut.allocation import NM, Dense, Pattern, Unstructured
from tailcut.errors import InputError

# n * s for n < 2^53 is off by less than this; without it floor(100 * 0.29) would be 28
_ROUNDING = 1e-6
_FEW = 8  # entries that are ranked by comparing all pairs


def lowest(score: Tensor, count: int) -> Tensor:
    """True at the `count` smallest entries of the last dimension; score [..., n] finite -> bool [..., n]."""
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    if score.is_cuda and score.shape[-1] <= _FEW:
        return ranks(score) < count
    threshold = _kth(score, count)
    below, tied = score < threshold, score == threshold
    wanted = count - below.sum(-1, keepdim=True)
    return below | (tied & (tied.cumsum(-1, dtype=torch.int32) <= wanted))


def ranks(score: Tensor) -> Tensor:
    """How many entries of the last dimension go before each: smaller ones, and equal ones that stand earlier.

    n comparisons an entry: at n = 4 a twentieth of the time of a selection on a GPU, but six times that on a CPU.
    """
    size = score.shape[-1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=score.device).tril(-1)
    this, other = score.unsqueeze(-1), score.unsqueeze(-2)
    return ((other < this) | ((other == this) & earlier)).sum(-1, dtype=torch.uint8)


def _kth(score: Tensor, count: int) -> Tensor:
    """The count-th smallest of the last dimension [..., 1]."""
    if score.is_cuda:  # a sort there takes a hundredth of kthvalue's time on long rows, and no longer on short ones
        return score.sort(dim=-1).values[..., count - 1 : count]
    return score.kthvalue(count, dim=-1, keepdim=True).values


def count_removed(size: int, sparsity: float) -> int:
    """floor(size * sparsity), immune to floating point dust."""
    return int(size * sparsity + _ROUNDING)


def removal_mask(score: Tensor, pattern: Pattern, *, per_row: bool) -> Tensor:
    """True where the pattern removes; score [out, in] -> bool [out, in].

    Unstructured: `per_row` removes floor(in * s) in every row, else floor(out * in * s) over the whole matrix.
    """
    match pattern:
        case Dense():
            return torch.zeros_like(score, dtype=torch.bool)
        case NM(keep, block):
            require_divisible("matrix", int(score.shape[-1]), pattern)
            return lowest(score.reshape(len(score), -1, block), block - keep).flatten(-2)
        case Unstructured(sparsity) if per_row:
            return lowest(score, count_removed(int(score.shape[-1]), sparsity))
        case Unstructured(sparsity):
            return lowest(score.flatten(), count_removed(score.numel(), sparsity)).view_as(score)


def require_divisible(name: str, columns: int, pattern: NM) -> None:
    """N:M needs whole groups along the inputs; InputError names the layer otherwise."""
    if columns % pattern.block:
        raise InputError(
            f"{name}: {pattern} needs an input dimension divisible by {pattern.block}, got {columns}; "
            "use an unstructured sparsity for this layer"
        )


def require_groups(name: str, after: Tensor, pattern: Pattern) -> None:
    """Check that no group of a matrix [out, in] keeps more than N:M allows; other patterns have no groups."""
    if isinstance(pattern, NM):
        kept = (after != 0).reshape(len(after), -1, pattern.block).sum(-1)
        if int(kept.max()) > pattern.keep:
            raise InputError(f"{name}: a group keeps {int(kept.max())} weights, {pattern} allows {pattern.keep}")


def require_plan(name: str, before: Tensor, after: Tensor, pattern: Pattern) -> None:
    """Check a pruned matrix [out, in] against its plan: zeros within one rounding step, N:M in every group.

    A rounding step is one weight a row. Weights that were zero before and are kept add zeros, never remove any.
    """
    require_groups(name, after, pattern)
    zeros, natural = int((after == 0).sum()), int((before == 0).sum())
    planned, step = pattern.sparsity * before.numel(), int(before.shape[0])
    if not planned - step <= zeros <= planned + natural + 1:
        raise InputError(
            f"{name}: {zeros} zeros of {before.numel()} weights, the plan {pattern} asks for {planned:.0f}"
        )
