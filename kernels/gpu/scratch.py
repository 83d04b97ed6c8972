"""Device memory that the step's kernels share between programs: partial results, and counters of who came last.

One `Scratch` serves every layer of a loop, because layers run one after the other. Counters start at zero and each
kernel's last program sets them back, so a CUDA graph can be replayed without a reset between.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tailcut.kernels.gpu.llama import Architecture

PROGRAMS: Final = 512  # wanted in flight for one token's attention: about four for each of an H100's 132 processors
MOST_SPLITS: Final = 32
CHUNK: Final = 1024  # logits one program looks through


@dataclass(frozen=True, slots=True)
class Scratch:
    """Room for attention split over positions and for the search of the largest logit.

    sums     float32 [batch * kv_heads, splits, heads / kv_heads, head_dim]   weighted values of a split
    tops     float32 [2, batch * kv_heads, splits, heads / kv_heads]          largest score, sum of weights
    best     float32 [batch, chunks]; where int32 [batch, chunks]             largest logit of a chunk
    arrived  int32 [batch * kv_heads + batch]                                 programs that have finished
    """

    sums: Tensor
    tops: Tensor
    best: Tensor
    where: Tensor
    arrived: Tensor
    splits: int


def splits_for(pairs: int) -> int:
    """Into how many ranges of positions a (row, key head) pair is divided: a power of two."""
    splits = 1
    while splits < MOST_SPLITS and splits * pairs < PROGRAMS:
        splits *= 2
    return splits


def make_scratch(architecture: Architecture, batch: int, device: torch.device, splits: int | None = None) -> Scratch:
    """Room for `batch` rows of a model."""
    pairs, group = batch * architecture.kv_heads, architecture.heads // architecture.kv_heads
    splits = splits_for(pairs) if splits is None else splits
    chunks = -(-architecture.vocabulary // CHUNK)
    return Scratch(
        sums=torch.empty(pairs, splits, group, architecture.head_dim, device=device),
        tops=torch.empty(2, pairs, splits, group, device=device),
        best=torch.empty(batch, chunks, device=device),
        where=torch.empty(batch, chunks, dtype=torch.int32, device=device),
        arrived=torch.zeros(pairs + batch, dtype=torch.int32, device=device),
        splits=splits,
    )
