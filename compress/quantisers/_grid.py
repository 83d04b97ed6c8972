"""Symmetric grids: scales of a matrix, weights to integers and back. Torch's side of tailcut.quantised.

The scale of n weights is max |w| / largest, or, searched, the one of CLIPS times that with the least squared error: at
4 bits and below a group loses less by cutting its outliers than by a coarse step. The squares are weighted by what an
error of the column costs. Unweighted, the search can do harm: an input with huge activations makes a weight dear that
looks like any other (SmolLM2-135M, output projection of block 0 under GPTQ at 3 bits: squared output error 0.0003 with
the largest weight's scale, 0.003 searched without weights, 0.0002 with). GPTQ's own code searches without them.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tailcut.allocation import Bits
from tailcut.compress.pruners._columns import Grid
from tailcut.quantised import GROUP, LARGEST

# 3 and 2 bits want about 0.7 and 0.45 of the largest of 128 normal weights; 4 bits 0.9
CLIPS: Final = tuple(1.0 - 0.025 * step for step in range(29))
_TINY: Final = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class Quantised:
    """W = q * scale: q int8 [out, in]; scales float32 [out] at 8 bits, [out, ceil(in / 128)] below."""

    q: Tensor
    scales: Tensor

    def dense(self) -> Tensor:
        """W float32 [out, in]."""
        return self.q.float() * spread(self.scales, int(self.q.shape[1]))


def spread(scales: Tensor, columns: int) -> Tensor:
    """Scales [out] or [out, groups] -> one that multiplies [out, columns]."""
    if scales.ndim == 1:
        return scales[:, None]
    return scales.repeat_interleave(GROUP, 1)[:, :columns]


def scale_of(weight: Tensor, bits: Bits, cost: Tensor | None) -> Tensor:
    """One scale a row: weight [rows, n] float32 -> [rows]; 0 where a row is all zeros.

    cost [n]: searched below 8 bits, by squared error times this; None: the largest weight's.
    """
    largest = LARGEST[bits]
    scales = weight.abs().amax(1) / largest
    scales = torch.where(scales >= _TINY, scales, 0.0)  # a subnormal scale would overflow when it divides
    return scales if cost is None or bits == 8 else _searched(weight, scales, bits, cost)


def scales_of(weight: Tensor, bits: Bits, clip: bool) -> Tensor:
    """Scales of a matrix [out, in] -> [out] at 8 bits, [out, ceil(in / 128)] below; searched with equal costs, or not."""
    if bits == 8:
        return scale_of(weight, bits, None)
    groups = torch.split(weight, GROUP, 1)
    return torch.stack([scale_of(group, bits, torch.ones_like(group[0]) if clip else None) for group in groups], 1)


def to_integers(weight: Tensor, scales: Tensor, bits: Bits) -> Tensor:
    """Nearest integers (ties to even) of weights over scales of a shape that divides them -> int8."""
    return Grid(scales, LARGEST[bits]).integers(weight).to(torch.int8)


def _searched(weight: Tensor, scales: Tensor, bits: Bits, cost: Tensor) -> Tensor:
    best, least = scales, torch.full_like(scales, torch.inf)
    for factor in CLIPS:
        tried = scales * factor
        step = tried[:, None]
        error = to_integers(weight, step, bits).float().mul_(step).sub_(weight).square_() @ cost
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return torch.where(best >= _TINY, best, 0.0)
