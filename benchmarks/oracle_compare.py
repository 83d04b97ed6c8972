"""What two prunings or two allocations differ by, as numbers; no oracle and no model."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

# Scores are |w| sqrt(E). The oracles keep E as a float32 running mean: with 16 sequences each adds and multiplies 16 times,
# 32 roundings of 6e-8 at most, halved by the root, and one more in the product
ROUNDING: Final = 2e-6


def mask_difference(
    ours: Tensor,
    theirs: Tensor,
    score: Tensor,
    group: int | None,
    rounding: float = ROUNDING,
    tied: Tensor | None = None,
) -> dict[str, int]:
    """Masks (True: removed) and the score that both rank by, all [out, in]; `group` neighbours in a row are ranked together
    (None: the whole matrix). Where a side's count in a group ends is its edge. Of the bits that differ

    exact       have the score of an edge, and so has another weight of the group: a tie
    rounded     lie within `rounding` of an edge, relatively, and so does another: a tie but for float32
                or are `tied` [out, in] (True: by a score that theirs ranks by before this one)
    counted     lie between the two edges, one side removing more of the group, or on the higher one
    unexplained are the rest
    """
    size = score.numel() if group is None else group
    a, b, s = (part.reshape(-1, size) for part in (ours, theirs, score))
    uneven = (a != b).any(1)  # what follows sorts: groups that are the same are left out
    a, b, s = a[uneven], b[uneven], s[uneven].double()
    known = torch.zeros_like(a) if tied is None else tied.reshape(-1, size)[uneven]
    edges = torch.stack([_edge(s, a.sum(1)), _edge(s, b.sum(1))])
    differs = a != b
    exact = differs & (_shared(s, edges[0], 0.0) | _shared(s, edges[1], 0.0))
    rounded = differs & ~exact & (_shared(s, edges[0], rounding) | _shared(s, edges[1], rounding) | known)
    between = (s > edges.amin(0)[:, None]) & (s <= edges.amax(0)[:, None])
    counted = differs & ~exact & ~rounded & between
    counts = {"differ": differs, "exact": exact, "rounded": rounded, "counted": counted}
    found = {"weights": score.numel()} | {name: int(bits.sum()) for name, bits in counts.items()}
    return found | {"unexplained": found["differ"] - found["exact"] - found["rounded"] - found["counted"]}


def tied_in_row(score: Tensor, rounding: float = ROUNDING) -> Tensor:
    """Which weights have the score [out, in] of another one of their row, at most `rounding` apart, relatively."""
    values, order = score.double().sort(dim=1)
    near = values.diff(dim=1) <= rounding * values[:, 1:].abs()
    none = near.new_zeros(len(near), 1)
    found = torch.cat([none, near], 1) | torch.cat([near, none], 1)
    return torch.empty_like(found).scatter_(1, order, found)


def _shared(score: Tensor, edge: Tensor, within: float) -> Tensor:
    """Weights that lie on the edge of their row [rows], at most `within` of it away, where at least two do."""
    near = (score - edge[:, None]).abs() <= within * edge.abs()[:, None]
    return near & (near.sum(1, keepdim=True) > 1)


def _edge(score: Tensor, count: Tensor) -> Tensor:
    """The count-th smallest score of each row [rows]; below all where the count is 0."""
    found = score.sort(1).values.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]
    return found.masked_fill(count == 0, torch.finfo(torch.float64).min)


def output_error(pruned: Tensor, dense: Tensor, gram: Tensor) -> float:
    """||X (W' - W)^T||^2 over all tokens: matrices [out, in], X^T X float64 [in, in]."""
    change = (pruned - dense).double()
    return float(((change @ gram) * change).sum())


def vector_difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Two rows of numbers of the same units: their greatest absolute and relative difference, and both means."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} of our numbers against {b.size} of theirs: not the same units")
    gap = np.abs(a - b)
    relative = np.divide(gap, np.abs(b), out=np.where(gap > 0, np.inf, 0.0), where=b != 0)
    return {
        "units": int(a.size),
        "most": float(gap.max()),
        "most_relative": float(relative.max()),
        "ours_mean": float(a.mean()),
        "theirs_mean": float(b.mean()),
    }
