"""Wanda's variant: the limit of the bisection that the authors run."""

import numpy as np
import pytest
import torch

from tailcut.allocation import NM, Unstructured
from tailcut.compress.pruners import wanda
from tailcut.compress.pruners.wanda_variant import cumulative_share, prune
from tailcut.compress.statistics import Statistics


def published(score: torch.Tensor, sparsity: float) -> torch.Tensor:
    """True where removed, by bisection of alpha to 0.001, in float64."""
    values = np.sort(score.double().numpy(), axis=1)
    sums, low, high, alpha = values.cumsum(1), 0.0, 0.8, 0.4
    while True:
        counts = (sums <= alpha * sums[:, -1:]).sum(1)
        found = counts.sum() / values.size
        if abs(found - sparsity) <= 0.001 or high - low < 0.001:
            break
        low, high = (low, alpha) if found > sparsity else (alpha, high)
        alpha = (low + high) / 2
    ranks = score.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < torch.from_numpy(counts)[:, None]


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_the_bisection_s_mask_at_the_bisection_s_count(sparsity: float) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, energy = torch.randn(40, 96, generator=generator) ** 3, torch.rand(40, generator=generator).new_ones(96)
    mask = published(wanda.importance(weight, energy), sparsity)
    count = int(mask.sum())
    assert abs(count / weight.numel() - sparsity) <= 0.002
    ours = prune(weight, Unstructured(count / weight.numel()), Statistics(energy)) == 0
    assert torch.equal(ours, mask)


def test_by_hand() -> None:
    """Shares of the rows: 0.1 0.3 0.6 1 and 0.01 0.03 0.06 1. Three lowest of all: the second row's small ones."""
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 94.0]])
    assert torch.allclose(cumulative_share(weight)[0], torch.tensor([0.1, 0.3, 0.6, 1.0], dtype=torch.float64))
    pruned = prune(weight, Unstructured(3 / 8), Statistics(torch.ones(4)))
    assert pruned.tolist() == [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 94.0]]


def test_rows_that_can_spare_more_lose_more_and_the_count_is_exact() -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(2, 500, generator=generator)
    weight[1] = weight[1] ** 5  # heavy tail: importance in few weights
    pruned = prune(weight, Unstructured(0.613), Statistics(torch.ones(500)))
    zeros = (pruned == 0).sum(1)
    assert int(zeros.sum()) == 613
    assert zeros[1] > zeros[0] + 100


def test_n_m_is_wanda_s() -> None:
    generator = torch.Generator().manual_seed(5)
    weight, energy = torch.randn(8, 32, generator=generator), torch.rand(32, generator=generator)
    assert torch.equal(prune(weight, NM(2, 4), Statistics(energy)), wanda.prune(weight, NM(2, 4), Statistics(energy)))
