"""From scores of single weights to one number a unit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tailcut.compress.structured import Aggregate


def over_elements(scores: Tensor) -> Tensor:
    """[units, channels, elements] -> [units], summed."""
    return scores.sum((1, 2))


def of_members(scores: Sequence[Tensor], how: Aggregate) -> Tensor:
    """One [units] tensor a member -> [units].

    LLM-Pruner aggregates channel by channel and sums over a head's channels afterwards. Members of a head with grouped
    queries have unequal numbers of channels, so here the channels are summed first: the same for sum, mean and first, and
    for MLP channels whatever the aggregation.
    """
    stacked = torch.stack(list(scores))
    match how:
        case "sum":
            return stacked.sum(0)
        case "mean":
            return stacked.mean(0)
        case "max":
            return stacked.amax(0)
        case "prod":
            # a product of hundreds of tiny sums would leave float32's range; a power of it keeps the order
            return stacked.clamp(min=0).double().log().mean(0).exp().float()
        case "first":
            return stacked[0]
